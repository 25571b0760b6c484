//! The contract, and what only this engine has: files, and everything that can happen to them.

use std::sync::Arc;

use crate::queue::contract::{self, Start};
use crate::queue::sled::SledQueue;

const START: Start = |settings, destinations, clock| Arc::new(SledQueue::start(settings, destinations, clock));

contract::volatile!(START);
contract::durable!(START);
