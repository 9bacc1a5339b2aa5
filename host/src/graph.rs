//! `genie-host graph`: what recognizers make of recorded graphs, as pictures and as JSON.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use genie_analyzer::components::{self, Parted};
use genie_analyzer::explanation::{Model, Phase};
use genie_analyzer::merge::{Claim, Said, merge};
use genie_analyzer::{Explanation, picture, scramble};
use genie_plugin::recorded::Recorded;
use genie_plugin::{Columns, Graph};
use genie_plugin_host::{PluginHost, PluginState};
use serde_json::json;

use crate::plugin::{NO_PLUGINS, Rules, installed_dir};
use crate::told::told;

/// What is said when no directory was named and none is installed.
const NO_PLUGINS_FOUND: &str = "no plugins are installed with this program; name their directory \
                                by --plugins, or draw without them by --no-plugins";

#[derive(Args)]
pub struct GraphArgs {
    /// Recorded graphs, as `genie.export_graph(path)` writes them.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the pictures go; otherwise next to each file. It is made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What is written.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        default_value = "json,dot,svg"
    )]
    format: Vec<Format>,
    /// The directory that holds one directory for each plugin, or `none`; otherwise the plugins
    /// that were installed with this program.
    #[arg(long, env = "GENIE_PLUGINS", value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Ask no plugins.
    #[arg(long)]
    no_plugins: bool,
    #[command(flatten)]
    rules: Rules,
    /// Write no files; print one line of JSON for each file: its workload and operators.
    #[arg(long, conflicts_with_all = ["out", "format"])]
    print: bool,
    /// Hide from recognizers what the program marked itself.
    #[arg(long)]
    strip_marks: bool,
    /// Hide the names of modules and classes behind letters.
    #[arg(long, value_name = "SEED")]
    scramble_names: Option<u64>,
    /// Exchange the names of modules and classes among each other.
    #[arg(long, value_name = "SEED")]
    permute_modules: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
enum Format {
    /// Nodes and storages with what was said of them: `.analyzed.json`.
    Json,
    /// For Graphviz: `.dot`.
    Dot,
    /// For a browser: `.svg`.
    Svg,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Json => "analyzed.json",
            Format::Dot => "dot",
            Format::Svg => "svg",
        }
    }
}

/// Goes through all files, also after one that cannot be used.
pub fn run(args: &GraphArgs) -> anyhow::Result<()> {
    let host = args.host()?;
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    let mut written = HashSet::new();
    let mut failures = 0;
    for file in &args.files {
        if let Err(error) = args.one(file, host.as_ref(), &mut written) {
            eprintln!("genie-host: {}", told(&error));
            failures += 1;
        }
    }
    for plugin in host.iter().flat_map(PluginHost::plugins) {
        if let PluginState::Refused(why) | PluginState::Disabled(why) = &plugin.state {
            eprintln!("genie-host: the plugin {} was not asked: {why}", plugin.name);
        }
    }
    ensure!(failures == 0, "{failures} of {} graphs could not be used", args.files.len());
    Ok(())
}

impl GraphArgs {
    fn host(&self) -> anyhow::Result<Option<PluginHost>> {
        let directory = match &self.plugins {
            _ if self.no_plugins => return Ok(None),
            Some(none) if none == Path::new(NO_PLUGINS) => return Ok(None),
            Some(directory) => directory.clone(),
            None => installed_dir().context(NO_PLUGINS_FOUND)?,
        };
        Ok(Some(PluginHost::open(self.rules.settings(&directory)?)?))
    }

    fn one(
        &self,
        file: &Path,
        host: Option<&PluginHost>,
        written: &mut HashSet<PathBuf>,
    ) -> anyhow::Result<()> {
        let mut columns = Recorded::read(file)?.graph;
        // The marks are compared with what is said, whoever may see them.
        let marks = Graph::trusted(columns.clone());
        if self.strip_marks {
            scramble::strip_marks(&mut columns);
        }
        if let Some(seed) = self.scramble_names {
            scramble::scramble_names(&mut columns, seed);
        }
        if let Some(seed) = self.permute_modules {
            scramble::permute_names(&mut columns, seed);
        }
        let parted = read(columns, host);
        if self.print {
            return print(file, &parted, &marks);
        }
        self.write(file, &parted, written)
    }

    fn write(
        &self,
        file: &Path,
        parted: &Parted,
        written: &mut HashSet<PathBuf>,
    ) -> anyhow::Result<()> {
        let Some(stem) = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else {
            bail!("{} is no file's name", file.display());
        };
        let dir = self.out.as_deref().or_else(|| file.parent()).unwrap_or(Path::new(""));
        let formats: HashSet<Format> = self.format.iter().copied().collect();
        for format in [Format::Json, Format::Dot, Format::Svg] {
            if !formats.contains(&format) {
                continue;
            }
            let path = dir.join(format!("{stem}.{}", format.extension()));
            let shown = path.display();
            ensure!(path != file, "{shown} is the graph itself; name another directory by --out");
            ensure!(
                written.insert(path.clone()),
                "{shown} was written for another graph of that name; draw them one by one"
            );
            let text = match format {
                Format::Json => picture::json(parted).to_string(),
                Format::Dot => picture::dot(parted),
                Format::Svg => picture::svg(parted, &stem),
            };
            std::fs::write(&path, text).with_context(|| format!("cannot write {shown}"))?;
            writeln!(std::io::stdout(), "{shown}")?;
        }
        writeln!(std::io::stdout(), "{}: {}", file.display(), summary(parted))?;
        Ok(())
    }
}

/// Asks every recognizer; one that fails is told and left out.
fn read(columns: Columns, host: Option<&PluginHost>) -> Parted {
    components::read(columns, |columns| {
        let mut said = Vec::new();
        for call in host.iter().flat_map(|host| host.recognize(columns)) {
            match call.result {
                Ok(notes) => said.push(Said { plugin: call.plugin, notes }),
                Err(error) => eprintln!("genie-host: the plugin {} failed: {error}", call.plugin),
            }
        }
        merge(columns, &said)
    })
}

/// Workload, how sure, and phases by first appearance; of several models each.
fn summary(parted: &Parted) -> String {
    let told = Explanation::of(parted, false, None);
    let phases = |phases: &[Phase]| {
        let each = phases.iter().map(|phase| format!("{} {}", phase.phase, phase.ops));
        let all: Vec<String> = each.collect();
        if all.is_empty() { "no phases".to_owned() } else { all.join(", ") }
    };
    let (label, confidence) = (&told.workload.label, told.workload.confidence);
    let begin = format!("{label} ({confidence:.2}); {} operators: ", told.ops_total);
    match &told.models[..] {
        [] | [_] => begin + &phases(&told.phases),
        models => {
            let one = |model: &Model| format!("\n  {}: {}", model.label, phases(&model.phases));
            begin
                + &format!("{} models", models.len())
                + &models.iter().map(one).collect::<String>()
        }
    }
}

fn print(file: &Path, parted: &Parted, marks: &Graph) -> anyhow::Result<()> {
    let Parted { graph, parts, reading } = parted;
    let ops: Vec<_> = graph
        .nodes()
        .filter(|node| graph.is_op(*node))
        .map(|node| {
            let phase = &reading.phases[node.0 as usize];
            json!({
                "op": graph.op(node),
                "module": graph.module(node),
                "phase": phase.word,
                "mark": marks.mark(node),
                "confidence": phase.confidence,
            })
        })
        .collect();
    let models: Vec<_> = parts
        .iter()
        .map(|(component, reading)| {
            let Claim { word, confidence, .. } = &reading.workload;
            let graph = &component.graph;
            let ops = graph.nodes().filter(|node| graph.is_op(*node)).count();
            json!({ "label": word, "confidence": confidence, "ops": ops })
        })
        .collect();
    let workload = &reading.workload;
    let line = json!({
        "file": file,
        "workload": { "label": workload.word, "confidence": workload.confidence },
        "models": models,
        "ops": ops,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
