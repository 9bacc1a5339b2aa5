//! A recognizer that looks at the clock.

use genie_plugin::guest::bindings::genie::plugin::clock;
use genie_plugin::prelude::*;

#[derive(Default)]
struct Clock;

impl Plugin for Clock {
    fn info() -> Info {
        Info { name: "clock".into(), version: "1".into(), ..Info::default() }
    }
}

impl Recognizer for Clock {
    fn recognize(&self, _: &Graph) -> Result<Annotations, String> {
        let begin = clock::now_us();
        while clock::now_us() == begin {}
        let mut notes = Annotations::new();
        notes.attribute("time", "it passes");
        Ok(notes)
    }
}

genie_plugin::recognizer!(Clock);
