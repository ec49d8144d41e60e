//! What the fuzz targets share.

use std::sync::LazyLock;

use feedlens::config::{Config, Overrides};

/// The shipped configuration, with limits small enough that libFuzzer reaches them.
pub static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let set = ["images.max_pixels=1000000", "images.max_bytes=65536", "posts.max_bytes=65536"].map(str::to_owned);
    Config::load(&[], &Overrides { files: Vec::new(), set: set.into() }).expect("the defaults load")
});

/// Panics that feedlens catches, in decoders that others wrote, are no finding: libFuzzer's own hook would end the process.
/// A panic that nobody catches still does.
pub fn let_caught_panics_pass() {
    std::panic::set_hook(Box::new(|_| {}));
}
