//! `genie-host plugin bench`: what a call into a recognizer costs, beside the same recognizer
//! run natively.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use genie_plugin::builder::GraphBuilder;
use genie_plugin::{Columns, Graph, Recognizer};
use genie_plugin_host::{Kind, PluginHost, PluginStatus};
use genie_plugin_probe::Probe;

use super::settings::Place;
use super::table;

/// The plugin whose native twin is built into this program.
const PROBE: &str = "probe";
/// Time spent on each row.
const ROW_TIME: Duration = Duration::from_millis(1_500);
/// Rounds of each row.
const ROUNDS_MIN: usize = 20;
const ROUNDS_MAX: usize = 2_000;
/// Starts of a precompiled plugin that are measured.
const STARTS: usize = 20;

#[derive(Args)]
pub struct BenchArgs {
    /// A plugin's directory, its manifest, or its name in --plugins; all when not given.
    plugin: Option<String>,
    /// Nodes of the synthetic graph; may be given several times.
    #[arg(long, value_name = "N", default_values_t = [200, 2_000, 20_000],
          value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    nodes: Vec<u32>,
    /// Fail when the probe's median at the last --nodes is more than this often the native one.
    #[arg(long, value_name = "X")]
    ratio_max: Option<f64>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let (host, names) = match &args.plugin {
        Some(which) => args.place.open_one(which)?,
        None => {
            let host = args.place.open()?;
            let names = host.plugins().into_iter().map(|plugin| plugin.name).collect();
            (host, names)
        }
    };
    let all: Vec<PluginStatus> =
        host.plugins().into_iter().filter(|plugin| names.contains(&plugin.name)).collect();
    print_loading(&args, &all)?;
    let mut rows = Vec::new();
    let mut ratio = None;
    for nodes in &args.nodes {
        let graph = synthetic(*nodes as usize);
        for plugin in all.iter().filter(|plugin| plugin.kinds.contains(&Kind::Recognizer)) {
            let measured = measure(&host, &plugin.name, &graph)?;
            if plugin.name == PROBE {
                ratio = Some(measured.ratio());
            }
            rows.push(measured.row(&plugin.name, graph.nodes()));
        }
    }
    println!("\none call, median of interleaved rounds, us");
    let header =
        ["PLUGIN", ">NODES", ">SANDBOX", ">BEST", ">NATIVE", ">RATIO", ">FROM COLUMNS", ">RATIO"];
    table::print(&header, &rows);
    println!(
        "\nNATIVE is the probe compiled into this program, on a graph that is ready; FROM \
         COLUMNS also copies and checks the columns, as another process would have to."
    );
    match (args.ratio_max, ratio) {
        (Some(max), Some(ratio)) if ratio > max => {
            anyhow::bail!("the ratio {ratio:.2} is above {max}")
        }
        (Some(_), None) => anyhow::bail!("--ratio-max needs the plugin {PROBE}"),
        _ => Ok(()),
    }
}

/// What loading costs: compiled anew, and from a cache of its own.
fn print_loading(args: &BenchArgs, plugins: &[PluginStatus]) -> anyhow::Result<()> {
    let cache = tempfile::tempdir().context("a directory for compiled code")?;
    let mut rows = Vec::new();
    for plugin in plugins {
        let dir = plugin.manifest.parent().context("the manifest's directory")?;
        let mut settings = args.place.rules.settings(dir)?;
        settings.cache = Some(cache.path().join(&plugin.name));
        let find =
            |host: &PluginHost| host.plugins().into_iter().find(|other| other.name == plugin.name);
        let first = PluginHost::open(settings.clone())?;
        let first = find(&first).context("the plugin is gone")?;
        let (mut starts, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let begin = Instant::now();
            let host = PluginHost::open(settings.clone())?;
            whole.push(begin.elapsed());
            let again = find(&host).context("the plugin is gone")?;
            starts.push(Duration::from_micros(again.compile_us + again.start_us));
        }
        rows.push(vec![
            plugin.name.clone(),
            format!("{:.1}", first.compile_us as f64 / 1e3),
            format!("{:.2}", ms(median(&mut starts))),
            format!("{:.2}", ms(median(&mut whole))),
            format!("{}", first.memory_bytes >> 10),
        ]);
    }
    println!("loading, ms");
    let header = ["PLUGIN", ">COMPILE", ">PRECOMPILED", ">WITH ITS HOST", ">MEMORY KIB"];
    table::print(&header, &rows);
    Ok(())
}

struct Measured {
    sandbox: Duration,
    best: Duration,
    native: Option<(Duration, Duration)>,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.native.map_or(f64::NAN, |(ready, _)| us(self.sandbox) / us(ready))
    }

    fn row(&self, name: &str, nodes: usize) -> Vec<String> {
        let mut row = vec![
            name.to_owned(),
            nodes.to_string(),
            format!("{:.1}", us(self.sandbox)),
            format!("{:.1}", us(self.best)),
        ];
        match self.native {
            None => row.extend(["-", "-", "-", "-"].map(str::to_owned)),
            Some((ready, columns)) => row.extend([
                format!("{:.1}", us(ready)),
                format!("{:.2}", us(self.sandbox) / us(ready)),
                format!("{:.1}", us(columns)),
                format!("{:.2}", us(self.sandbox) / us(columns)),
            ]),
        }
        row
    }
}

fn measure(host: &PluginHost, name: &str, columns: &Columns) -> anyhow::Result<Measured> {
    let ready = Graph::new(columns.clone()).context("the synthetic graph")?;
    let (mut sandbox, mut native, mut from_columns) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while sandbox.len() < ROUNDS_MIN || (begin.elapsed() < ROW_TIME && sandbox.len() < ROUNDS_MAX) {
        let start = Instant::now();
        let call = host.recognize_with(name, columns);
        sandbox.push(start.elapsed());
        let call = call.with_context(|| format!("the plugin {name} is not ready"))?;
        call.result.with_context(|| format!("the plugin {name} failed"))?;
        if name == PROBE {
            let start = Instant::now();
            let notes = Probe.recognize(std::hint::black_box(&ready));
            native.push(start.elapsed());
            drop(std::hint::black_box(notes));
            let start = Instant::now();
            let graph = Graph::new(columns.clone()).context("the synthetic graph")?;
            let notes = Probe.recognize(&graph);
            from_columns.push(start.elapsed());
            drop(std::hint::black_box(notes));
        }
    }
    let best = *sandbox.iter().min().expect("there are rounds");
    let twin = (!native.is_empty()).then(|| (median(&mut native), median(&mut from_columns)));
    Ok(Measured { sandbox: median(&mut sandbox), best, native: twin })
}

/// Layers with attention-like wiring: three products of one input, and a residual.
fn synthetic(nodes: usize) -> Columns {
    let mut g = GraphBuilder::new();
    let mut x = g.input(&[16, 64]);
    let mut made = 1;
    let mut layer = 0;
    while made + 12 <= nodes {
        let weights: Vec<_> = (0..4).map(|_| g.weight(&[64, 64])).collect();
        x = g.module(&format!("layers.{layer}.attention"), "Attention", |g| {
            let [q, k, v] = [0, 1, 2].map(|i| g.op("aten::mm", &[x, weights[i]], &[16, 64]));
            let keys = g.transpose(k, 0, 1);
            let scores = g.op("aten::mm", &[q, keys], &[16, 16]);
            let scores = g.op("aten::_softmax", &[scores], &[16, 16]);
            let mixed = g.op("aten::mm", &[scores, v], &[16, 64]);
            let out = g.op("aten::mm", &[mixed, weights[3]], &[16, 64]);
            g.op("aten::add.Tensor", &[x, out], &[16, 64])
        });
        made += 12;
        layer += 1;
    }
    for _ in made..nodes {
        x = g.op("aten::relu", &[x], &[16, 64]);
    }
    g.columns()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
