//! The commands on stdin, one a line, answered by `ok ...` or `error ...`:
//!
//!     delay LANE us=2000
//!     drop|duplicate LANE [AIM]           the next packet, or `count=N` of them, after `skip=N`
//!     hold LANE us=5000 [AIM]
//!     flip LANE [offset=-1] [bit=0] [AIM] a bit of the payload, checksum mended
//!     remember LANE count=64              copies for a replay; 0 forgets
//!     replay LANE [count=1] [AIM]         answers how many were sent
//!     calm LANE                           forgets the faults not struck yet
//!     stats LANE                          one JSON object
//!
//! AIM is any of `protocol=udp|tcp port=N bytes_min=N skip=N count=N`.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::fault::{Aim, Deed, Fault};
use crate::lane::Lane;
use crate::packet::Protocol;

/// Does what the line says and returns the answer.
pub fn obey(lanes: &mut [Lane], line: &str, now: Instant) -> String {
    match attempt(lanes, line, now) {
        Ok(said) => format!("ok {said}").trim_end().to_owned(),
        Err(error) => format!("error {error:#}"),
    }
}

fn attempt(lanes: &mut [Lane], line: &str, now: Instant) -> Result<String> {
    let mut words = line.split_whitespace();
    let verb = words.next().context("an empty command")?;
    let name = words.next().with_context(|| format!("`{verb}` needs a lane"))?;
    let lane = lanes.iter_mut().find(|lane| lane.name == name);
    let lane = lane.with_context(|| format!("no lane `{name}`"))?;
    let mut settings = Settings::read(words)?;
    let deed = match verb {
        "delay" => {
            lane.delay = settings.duration()?;
            None
        }
        "remember" => {
            lane.remember(settings.number("count", 64)?);
            None
        }
        "calm" => {
            lane.faults.clear();
            None
        }
        "stats" => return settings.done().map(|()| stats(lane)),
        "replay" => {
            let (aim, count) = (settings.aim()?, settings.number("count", 1)?);
            settings.done()?;
            return Ok(lane.replay(&aim, count, now).to_string());
        }
        _ => Some(deed(verb, &mut settings)?),
    };
    if let Some(deed) = deed {
        let (aim, skip) = (settings.aim()?, settings.number("skip", 0)?);
        lane.faults.push(Fault { deed, aim, skip, left: settings.number("count", 1)? });
    }
    settings.done()?;
    Ok(String::new())
}

fn deed(verb: &str, settings: &mut Settings) -> Result<Deed> {
    Ok(match verb {
        "drop" => Deed::Drop,
        "duplicate" => Deed::Duplicate,
        "hold" => Deed::Hold(settings.duration()?),
        "flip" => {
            Deed::Flip { offset: settings.number("offset", -1)?, bit: settings.number("bit", 0)? }
        }
        _ => bail!("no command `{verb}`; the relay's `command.rs` lists them"),
    })
}

/// The `key=value` words of a command; each must be asked for.
struct Settings(HashMap<String, String>);

impl Settings {
    fn read<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self> {
        let pairs = words.map(|word| {
            let (key, value) =
                word.split_once('=').with_context(|| format!("`{word}` is not key=value"))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        Ok(Self(pairs.collect::<Result<_>>()?))
    }

    fn number<N: FromStr>(&mut self, key: &str, otherwise: N) -> Result<N> {
        match self.0.remove(key) {
            Some(value) => {
                value.parse().ok().with_context(|| format!("{key}={value} is no fitting number"))
            }
            None => Ok(otherwise),
        }
    }

    fn duration(&mut self) -> Result<Duration> {
        let value = self.0.remove("us").context("it needs us=MICROSECONDS")?;
        let us = value.parse().ok().with_context(|| format!("us={value} is no fitting number"))?;
        Ok(Duration::from_micros(us))
    }

    fn aim(&mut self) -> Result<Aim> {
        let aim = Aim::default();
        let protocol = match self.0.remove("protocol").as_deref() {
            None => None,
            Some("udp") => Some(Protocol::Udp),
            Some("tcp") => Some(Protocol::Tcp),
            Some(other) => bail!("protocol={other}: udp or tcp"),
        };
        let port = match self.number("port", 0)? {
            0 => None,
            port => Some(port),
        };
        Ok(Aim { protocol, port, bytes_min: self.number("bytes_min", aim.bytes_min)? })
    }

    fn done(self) -> Result<()> {
        match self.0.keys().next() {
            Some(key) => bail!("this command has no setting `{key}`"),
            None => Ok(()),
        }
    }
}

fn stats(lane: &Lane) -> String {
    let counts = &lane.counts;
    let mean = counts.late.as_secs_f64() * 1e6 / counts.written.max(1) as f64;
    let fields = [
        ("read", counts.read),
        ("written", counts.written),
        ("refused", counts.refused),
        ("overflowed", counts.overflowed),
        ("dropped", counts.dropped),
        ("duplicated", counts.duplicated),
        ("held_longer", counts.held_longer),
        ("flipped", counts.flipped),
        ("replayed", counts.replayed),
        ("in_hand", lane.held() as u64),
        ("late_us_mean", mean as u64),
        ("late_us_max", counts.late_max.as_micros() as u64),
    ];
    let fields = fields.map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &str, expect: Result<(Aim, u64), &str>) {
        let read = Settings::read(words.split_whitespace()).and_then(|mut settings| {
            let found = (settings.aim()?, settings.number("count", 1)?);
            settings.done().map(|()| found)
        });
        match (read, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{words}"),
            (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#}"),
            (found, expect) => panic!("{words}: {found:?}, not {expect:?}"),
        }
    }

    #[test]
    fn settings() {
        let aim = Aim { protocol: Some(Protocol::Udp), port: Some(7), bytes_min: 100 };
        check("", Ok((Aim::default(), 1)));
        check("protocol=udp port=7 bytes_min=100 count=3", Ok((aim, 3)));
        check("port=70000", Err("port=70000"));
        check("protocol=sctp", Err("udp or tcp"));
        check("nonsense=1", Err("no setting `nonsense`"));
        check("count", Err("not key=value"));
    }

    #[test]
    fn commands_name_what_is_wrong() {
        let answers = ["", "drop", "drop nowhere"].map(|line| obey(&mut [], line, Instant::now()));
        assert_eq!(
            answers,
            ["error an empty command", "error `drop` needs a lane", "error no lane `nowhere`"]
        );
    }
}
