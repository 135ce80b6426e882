fn main() -> std::process::ExitCode {
    opcert::opcertd_main()
}
