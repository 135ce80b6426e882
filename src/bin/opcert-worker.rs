fn main() -> std::process::ExitCode {
    opcert::worker_main()
}
