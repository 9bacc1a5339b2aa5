//! Writes the wire's limits down for the C++ side, so that they stand in one place only.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use genie_wire::limits::*;

pub fn generate(out: &Path) -> Result<(), String> {
    let limits = [
        ("kTemplateBytesMax", TEMPLATE_BYTES_MAX as u64),
        ("kTemplatesMax", TEMPLATES_MAX as u64),
        ("kTemplatesBytesMax", TEMPLATES_BYTES_MAX as u64),
        ("kScriptsMax", SCRIPTS_MAX as u64),
        ("kScriptsBytesMax", SCRIPTS_BYTES_MAX as u64),
        ("kSlotsMax", SLOTS_MAX as u64),
        ("kScalarsMax", SCALARS_MAX as u64),
        ("kOutputsMax", OUTPUTS_MAX as u64),
        ("kDimsMax", DIMS_MAX as u64),
        ("kListMax", LIST_MAX as u64),
        ("kNestingMax", NESTING_MAX as u64),
        ("kStringMax", STRING_BYTES_MAX as u64),
        ("kStorageBytesMax", STORAGE_BYTES_MAX),
        ("kStoragesMax", STORAGES_MAX as u64),
        ("kRunReserveMax", RUN_RESERVE_MAX),
        ("kGeneratorStateMax", GENERATOR_STATE_BYTES_MAX as u64),
    ];
    let mut text = String::from(
        "// genie_wire::limits, written by build/limits.rs.\n#pragma once\n#include <cstdint>\n\n\
         namespace genie {\n\n",
    );
    for (name, value) in limits {
        writeln!(text, "constexpr uint64_t {name} = {value};").expect("a string takes any text");
    }
    text.push_str("\n}  // namespace genie\n");
    let path = out.join("wire_limits.h");
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
