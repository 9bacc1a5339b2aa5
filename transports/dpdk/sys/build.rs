//! Finds libdpdk by pkg-config, compiles the shim against its headers and links it dynamically.

use std::process::{Command, exit};

/// The oldest DPDK whose headers the shim was compiled with.
const OLDEST: &str = "22.11";

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    let found = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .print_system_libs(false)
        .probe("libdpdk");
    let dpdk = match found {
        Ok(dpdk) => dpdk,
        Err(error) => {
            eprintln!(
                "libdpdk >= {OLDEST} was not found by pkg-config.\n\
                 Install it with `make dpdk-deps` at Genie's root, or by hand: \
                 `apt-get install dpdk libdpdk-dev pkg-config`; a DPDK of your own is found \
                 through PKG_CONFIG_PATH.\n\npkg-config said: {error}"
            );
            exit(1);
        }
    };

    let mut shim = cc::Build::new();
    shim.file("shim/shim.c").warnings(true).extra_warnings(true).flag("-std=gnu11");
    if std::env::var_os("CARGO_FEATURE_FAKE_GPU").is_some() {
        shim.file("shim/fake_gpu.c");
    }
    // The crate `pkg-config` keeps -I and -D only. DPDK's inline functions need -include
    // rte_config.h and -march too, so the flags are taken as pkg-config prints them.
    for flag in flags("--cflags") {
        shim.flag(flag);
    }
    // DPDK marks GPUDev experimental and its driver side internal; both are used on purpose.
    shim.define("ALLOW_EXPERIMENTAL_API", None).define("ALLOW_INTERNAL_API", None);
    shim.compile("genie_dpdk_shim");

    // The shim needs only these; the drivers are loaded by EAL when it starts. (pkg-config names
    // all of DPDK under --as-needed, which cargo's order of arguments defeats.)
    for path in &dpdk.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for lib in ["eal", "ethdev", "mbuf", "mempool", "ring", "gpudev", "net_ring", "kvargs"] {
        println!("cargo:rustc-link-lib=dylib=rte_{lib}");
    }
}

fn flags(which: &str) -> Vec<String> {
    let pkg_config = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let printed = Command::new(pkg_config)
        .args([which, "libdpdk"])
        .output()
        .expect("pkg-config answered a moment ago");
    String::from_utf8_lossy(&printed.stdout).split_whitespace().map(str::to_owned).collect()
}
