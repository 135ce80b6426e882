fn main() -> std::process::ExitCode {
    opcert::accountd_main()
}
