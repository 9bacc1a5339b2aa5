//! Checks what policies propose, predicts what it costs, and has a plan of its own.
//!
//! Sans-IO: it sees a graph, what recognizers said of it, and the cluster as it is. It runs
//! nothing and measures nothing. Start reading at [`choose`], then [`check`] and [`cost`].

pub mod built_in;
pub mod check;
pub mod cluster;
pub mod cost;
pub mod illegal;
mod memory;
mod movement;
mod schedule;
pub mod work;

use genie_plugin::{Annotations, Cluster, Graph, Plan};

pub use built_in::{BUILT_IN, built_in};
pub use check::{Legal, check};
pub use cost::{Mode, Predicted, Traffic, simulate};
pub use illegal::IllegalPlan;

/// What a plan is predicted to cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The next execution, which may have to move weights and caches first.
    pub first: Predicted,
    /// Each execution after that.
    pub steady: Predicted,
}

/// The plan that runs, and what became of the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Who proposed it; [`BUILT_IN`] where no proposal was legal.
    pub policy: String,
    pub plan: Plan,
    /// None where not even the built-in plan is legal (too little memory, no device): then
    /// `refused` says why, and what runs is for the node to refuse.
    pub predicted: Option<Forecast>,
    /// Legal plans with their cost, in the order of proposal; the built-in plan is the last.
    pub compared: Vec<(String, Forecast)>,
    pub refused: Vec<(String, IllegalPlan)>,
}

/// Takes the first legal proposal, else the built-in plan. The order of the proposals is the
/// caller's preference; what each legal plan would cost is in [`Choice::compared`].
pub fn choose(
    graph: &Graph,
    notes: &Annotations,
    cluster: &Cluster,
    proposals: Vec<(String, Plan)>,
) -> Choice {
    let own = (BUILT_IN.to_owned(), built_in(graph, cluster));
    let mut chosen: Option<(String, Plan, Forecast)> = None;
    let mut compared = Vec::new();
    let mut refused = Vec::new();
    let mut last = None;
    for (policy, plan) in proposals.into_iter().chain([own]) {
        match check(graph, cluster, &plan) {
            Err(why) => refused.push((policy.clone(), why)),
            Ok(legal) => {
                let forecast = Forecast {
                    first: simulate(graph, notes, cluster, &legal, Mode::First),
                    steady: simulate(graph, notes, cluster, &legal, Mode::Steady),
                };
                compared.push((policy.clone(), forecast.clone()));
                if chosen.is_none() {
                    chosen = Some((policy, plan, forecast));
                    continue;
                }
            }
        }
        last = Some(plan);
    }
    match (chosen, last) {
        (Some((policy, plan, forecast)), _) => {
            Choice { policy, plan, predicted: Some(forecast), compared, refused }
        }
        (None, plan) => Choice {
            policy: BUILT_IN.to_owned(),
            plan: plan.expect("the built-in plan was refused, so it is the last"),
            predicted: None,
            compared,
            refused,
        },
    }
}
