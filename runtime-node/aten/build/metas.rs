//! Generates the table of C++ shape functions.
//!
//! `import torch` replaces the Meta kernels of most operators by Python functions that take 60 to
//! 2,000 us. The structured kernels' own shape functions, `at::meta::*`, take 2. They are not
//! reachable through the dispatcher any more, so this reads their declarations from PyTorch's
//! headers and writes one table row for each whose signature is that of an operator.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::torch::{Torch, dynamic_symbols};

/// Source files the table is cut into: each takes the compiler about as long as any other file.
const SHARDS: usize = 4;

struct Operator {
    /// `aten::add`
    name: String,
    /// `Tensor`
    overload: String,
    /// `at::Tensor (const at::Tensor &, ...)`
    signature: String,
}

pub fn generate(torch: &Torch, out: &Path) -> Result<Vec<PathBuf>, String> {
    let ops = torch.include().join("ATen/ops");
    let exported = dynamic_symbols(&torch.lib().join("libtorch_cpu.so"))?;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(&ops)
        .map_err(|error| format!("cannot read {}: {error}", ops.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix("_meta_dispatch.h").map(str::to_owned))
        .collect();
    entries.sort();
    for base in entries {
        let declared = functions(&read(&ops.join(format!("{base}_meta_dispatch.h")))?);
        let operators = operators(&read(&ops.join(format!("{base}_ops.h")))?);
        for operator in operators {
            if let Some(function) = matching(&operator, &declared)
                && exported.contains(&format!("N2at4meta{}{}E", function.len(), function))
            {
                let row = format!(
                    "  {{\"{}\", \"{}\", c10::KernelFunction::makeFromUnboxedRuntimeFunction(\
                     static_cast<{}>(&at::meta::{}))}},\n",
                    operator.name,
                    operator.overload,
                    pointer(&operator.signature),
                    function
                );
                rows.push((base.clone(), row));
            }
        }
    }
    if rows.is_empty() {
        return Err(format!("no shape functions found in {}", ops.display()));
    }
    write_shards(&rows, out)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Function name -> signatures, of the `TORCH_API` lines.
fn functions(header: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in header.lines() {
        let Some(rest) = line.trim().strip_prefix("TORCH_API ") else { continue };
        let Some(open) = parameters_start(rest) else { continue };
        let Some(close) = rest.rfind(')') else { continue };
        let head = rest[..open].trim_end();
        let Some(split) = head.rfind([' ', '&', '>']) else { continue };
        let (result, name) = (head[..=split].trim(), head[split + 1..].trim());
        let types: Vec<String> = split_top(&rest[open + 1..close]).map(parameter_type).collect();
        let signature = format!("{result} ({})", types.join(", "));
        found.entry(name.to_owned()).or_default().push(normal(&signature));
    }
    found
}

/// The parenthesis that opens the parameters: the first outside template brackets.
fn parameters_start(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            '(' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn split_top(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '<' | '(' | '{' => depth += 1,
            '>' | ')' | '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

/// `const at::Scalar & alpha=1` -> `const at::Scalar &`
fn parameter_type(parameter: &str) -> String {
    let declared = parameter.split('=').next().unwrap_or(parameter).trim_end();
    let end = declared.rfind([' ', '&', '>', '*']).map_or(0, |at| at + 1);
    declared[..end].trim().to_owned()
}

fn normal(signature: &str) -> String {
    signature.split_whitespace().collect::<Vec<_>>().join(" ").replace("::std::", "std::")
}

fn operators(header: &str) -> Vec<Operator> {
    let mut found = Vec::new();
    let (mut signature, mut name) = (None, None);
    for line in header.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("using schema = ") {
            signature = Some(normal(rest.trim_end_matches(';')));
        } else if line.contains("overload_name") {
            if let (Some(signature), Some(name), Some(overload)) =
                (signature.take(), name.take(), quoted(line))
            {
                found.push(Operator { name, overload, signature });
            }
        } else if line.contains("aten::") && (line.contains(" name = ") || line.contains("(name,"))
        {
            name = quoted(line);
        }
    }
    found
}

fn quoted(line: &str) -> Option<String> {
    let start = line.find('"')? + 1;
    let end = line[start..].find('"')? + start;
    Some(line[start..end].to_owned())
}

/// The declared function with the operator's name and signature.
fn matching(operator: &Operator, declared: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let base = operator.name.strip_prefix("aten::")?;
    ["", "_symint", "_outf", "_symint_outf"]
        .iter()
        .map(|suffix| format!("{base}{suffix}"))
        .find(|name| declared.get(name).is_some_and(|all| all.contains(&operator.signature)))
}

/// `R (A, B)` -> `R (*)(A, B)`
fn pointer(signature: &str) -> String {
    let open = parameters_start(signature).expect("a signature has parameters");
    format!("{}(*){}", &signature[..open], &signature[open..])
}

fn write_shards(rows: &[(String, String)], out: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for (shard, rows) in rows.chunks(rows.len().div_ceil(SHARDS)).enumerate() {
        let mut text = String::from(
            "// Written by build/metas.rs.\n#include <ATen/ATen.h>\n#include \"capture/metas.h\"\n",
        );
        let mut headers: Vec<&str> = rows.iter().map(|(base, _)| base.as_str()).collect();
        headers.dedup();
        for base in headers {
            text += &format!("#include <ATen/ops/{base}_meta_dispatch.h>\n");
        }
        text += &format!(
            "namespace genie {{\nvoid add_metas_{shard}(std::vector<MetaRow>& rows) {{\n\
             MetaRow table[] = {{\n"
        );
        rows.iter().for_each(|(_, row)| text += row);
        text += "};\nfor (auto& row : table) rows.push_back(std::move(row));\n}\n}\n";
        files.push(write(out, &format!("metas_{shard}.cpp"), &text)?);
    }
    let mut text = String::from("#include \"capture/metas.h\"\nnamespace genie {\n");
    for shard in 0..files.len() {
        text += &format!("void add_metas_{shard}(std::vector<MetaRow>&);\n");
    }
    text += "std::vector<MetaRow> metas() {\n  std::vector<MetaRow> rows;\n";
    for shard in 0..files.len() {
        text += &format!("  add_metas_{shard}(rows);\n");
    }
    text += "  return rows;\n}\n}\n";
    files.push(write(out, "metas.cpp", &text)?);
    Ok(files)
}

fn write(out: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = out.join(name);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(path)
}
