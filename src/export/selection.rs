//! stub
use crate::event::{Event, Schema};
/// x
pub enum Judgement {
    /// k
    Keep,
    /// d
    Drop(&'static str),
}
/// x
pub struct Selection;
impl Selection {
    /// x
    pub fn judge(&self, _s: Schema, _e: &Event) -> Judgement {
        Judgement::Keep
    }
}
