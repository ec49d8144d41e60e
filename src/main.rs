//! The binary; everything is in the library.

fn main() {
    feedlens::service::end_process(feedlens::cli::main())
}
