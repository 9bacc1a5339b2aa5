//! Decides where a graph runs: one component, three goals.
//!
//! `goal` in the manifest's `[config]` says what counts: `latency`, `traffic` or `balanced`.
//! Placements are tried in families ([`place`]), each is estimated ([`estimate`]), the best one
//! becomes the plan ([`decide`]).

mod decide;
mod estimate;
mod facts;
mod place;

use genie_plugin::prelude::*;

use facts::Facts;

/// What a plan is to be good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Goal {
    Latency,
    Traffic,
    #[default]
    Balanced,
}

impl Goal {
    fn name(self) -> &'static str {
        match self {
            Goal::Latency => "minimize-latency",
            Goal::Traffic => "minimize-traffic",
            Goal::Balanced => "balanced",
        }
    }
}

/// The policy.
#[derive(Debug, Default)]
pub struct Placer {
    pub goal: Goal,
}

impl Plugin for Placer {
    fn info() -> Info {
        let summary = "Placement over devices by an estimate of time and traffic";
        let provides = &["minimize-latency", "minimize-traffic", "balanced"];
        Info::new("policies", env!("CARGO_PKG_VERSION"), summary, provides)
    }

    fn configure(&mut self, json: &str) -> Result<(), String> {
        self.goal = match text_field(json, "goal") {
            None => Goal::default(),
            Some("latency") => Goal::Latency,
            Some("traffic") => Goal::Traffic,
            Some("balanced") => Goal::Balanced,
            Some(other) => {
                return Err(format!("goal `{other}` is none of latency, traffic, balanced"));
            }
        };
        Ok(())
    }
}

impl Policy for Placer {
    fn schedule(&self, graph: &Graph, notes: &Annotations, now: &Cluster) -> Result<Plan, String> {
        if now.devices.is_empty() {
            return Err("the cluster has no devices".to_owned());
        }
        decide::decide(&Facts::new(graph, notes, now), self.goal)
    }
}

/// The text of a field of a flat JSON object. Enough for this manifest; a JSON parser would be
/// most of the component.
fn text_field<'a>(json: &'a str, field: &str) -> Option<&'a str> {
    let key = format!("\"{field}\"");
    let after = &json[json.find(&key)? + key.len()..];
    let value = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(text, _)| text)
}

genie_plugin::policy!(Placer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_comes_from_the_manifest() {
        let check = |json: &str| {
            let mut placer = Placer::default();
            placer.configure(json).map(|()| placer.goal)
        };
        assert_eq!(check("{}"), Ok(Goal::Balanced));
        assert_eq!(check(r#"{"goal":"latency"}"#), Ok(Goal::Latency));
        assert_eq!(check(r#"{ "goal" : "traffic" }"#), Ok(Goal::Traffic));
        assert!(check(r#"{"goal":"fame"}"#).is_err());
    }
}
