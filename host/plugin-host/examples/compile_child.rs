//! The program that the tests start to compile components, as `genie-host` does with itself.

fn main() -> std::process::ExitCode {
    genie_plugin_host::compile_child_main()
}
