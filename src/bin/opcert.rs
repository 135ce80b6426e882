fn main() -> std::process::ExitCode {
    opcert::opcert_main()
}
