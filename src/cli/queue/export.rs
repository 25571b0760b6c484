//! `flagtap queue export`: what waits, as the records that destinations of lines get.

use std::io::{self, Write};

use crate::export::form::Form;
use crate::export::{event_ids, export_event};
use crate::queue::sled::inspect::{InspectError, Inspection};

/// Writes every event that waits for `destination` (for anybody, without one) once. Returns what could not be read.
pub(super) fn write(
    inspection: &Inspection,
    destination: Option<&str>,
    out: &mut dyn Write,
) -> Result<Vec<String>, InspectError> {
    let form = Form::default();
    inspection.waiting(destination, |record| {
        let ids = event_ids(record);
        for (event, id) in record.events.iter().zip(&ids) {
            if let Ok(mut line) = form.render(&export_event(record, event, id)) {
                on_one_line(&mut line);
                out.write_all(&line)?;
            }
        }
        io::Result::Ok(true)
    })
}

/// Line breaks that the sender wrote between tokens become spaces: the text between them would pass for records.
fn on_one_line(record: &mut Vec<u8>) {
    for byte in record.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    record.push(b'\n');
}
