//! Compiles the C++ shim against the libtorch of a Python environment.
//!
//! The environment is that of `GENIE_PYTHON`, else `PYO3_PYTHON`, else the active virtual
//! environment, else `python3`. The result is tied to that torch's minor version.

mod limits;
mod metas;
mod torch;

use std::path::PathBuf;

fn main() {
    if let Err(message) = build() {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    for name in ["GENIE_PYTHON", "PYO3_PYTHON", "VIRTUAL_ENV", "CXX", "CXXFLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=cpp");
    println!("cargo::rerun-if-changed=build");

    let capture = std::env::var_os("CARGO_FEATURE_CAPTURE").is_some();
    let execute = std::env::var_os("CARGO_FEATURE_EXECUTE").is_some();
    if !capture && !execute {
        return Ok(());
    }
    let torch = torch::Torch::find()?;
    println!("cargo::rerun-if-changed={}", torch.version_file().display());

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    limits::generate(&out)?;
    let mut files: Vec<PathBuf> = vec!["cpp/settings.cpp".into()];
    if execute {
        files.extend(["denied", "execute", "memory"].map(|name| format!("cpp/{name}.cpp").into()));
    }
    if capture {
        for name in [
            "attention",
            "autocast",
            "composites",
            "device",
            "doubts",
            "infer",
            "kernels",
            "op",
            "divide",
            "readers",
            "refused",
            "register",
            "script",
            "settings",
        ] {
            files.push(format!("cpp/capture/{name}.cpp").into());
        }
        files.extend(metas::generate(&torch, &out)?);
    }
    cc::Build::new()
        .cpp(true)
        .std(torch.cxx_standard())
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .flag("-fvisibility=hidden")
        .define("_GLIBCXX_USE_CXX11_ABI", torch.cxx11_abi)
        .include("cpp")
        .include(&out)
        .flag(format!("-isystem{}", torch.include().display()))
        .flag(format!("-isystem{}/torch/csrc/api/include", torch.include().display()))
        .files(files)
        .cargo_metadata(false)
        .try_compile("genie_aten")
        .map_err(|error| format!("cannot compile the C++ shim: {error}"))?;
    println!("cargo::rustc-link-search=native={}", out.display());
    // Registrations are reached by no symbol: keep every object.
    println!("cargo::rustc-link-lib=static:+whole-archive=genie_aten");
    println!("cargo::rustc-link-search=native={}", torch.lib().display());
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
    if capture {
        println!("cargo::rustc-link-lib=dylib=torch_python");
    }
    println!("cargo::rustc-link-lib=dylib=stdc++");
    // This crate's own tests find the libraries where they were linked.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", torch.lib().display());
    // For dependents: where the libraries are, to set a run path.
    println!("cargo::metadata=torch_lib={}", torch.lib().display());
    Ok(())
}
