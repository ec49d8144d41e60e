use std::io::Write as _;
use std::time::Duration;

use super::*;
use crate::config::{Config, Overrides};
use crate::error::tests::assert_rejected;

fn config() -> ImagesConfig {
    let mut images = Config::load(&[], &Overrides::default()).expect("the defaults load").images;
    images.max_bytes = 1_000;
    images
}

#[test]
fn base64_is_read_plain_as_data_uri_and_in_both_alphabets() {
    let bytes: Vec<u8> = vec![0xfb, 0xff, 0xfe, 0x10];
    for text in [
        "+//+EA==",
        "+//+EA",
        "-__-EA==",
        "-__-EA",
        " +//+\r\n EA==\n",
        "data:image/png;base64,+//+EA==",
        "DATA:Image/PNG;Base64,-__-EA",
        "data:image/svg+xml;charset=utf-8;base64,+//+EA==",
    ] {
        assert_eq!(decode_base64(text, 10).expect(text), bytes, "{text}");
    }
}

#[test]
fn base64_that_is_none_is_a_bad_image() {
    for (text, mentions) in [
        ("*", "Invalid"),
        ("A", "Invalid"),
        ("data:image/png;base64", "comma"),
        ("data:text/html;base64,AAAA", "image type"),
        ("data:;base64,AAAA", "image type"),
        ("data:image/png,AAAA", "base64"),
        ("+_AA", "Invalid"),
        ("é", "Invalid"),
    ] {
        assert_rejected(decode_base64(text, 10), Reason::BadImage, mentions);
    }
}

#[test]
fn base64_is_bounded_before_it_is_decoded() {
    assert_eq!(decode_base64(&"A".repeat(16), 12).expect("fits").len(), 12);
    assert_rejected(decode_base64(&"A".repeat(18), 12), Reason::TooLarge, "max_bytes = 12");
    assert_rejected(decode_base64(&"*".repeat(4_000), 12), Reason::TooLarge, "3000 bytes");
}

#[tokio::test]
async fn long_base64_is_decoded_off_the_async_thread_alike() {
    let mut config = config();
    config.max_bytes = 1_000_000;
    let fetcher = ImageFetcher::new(&config).expect("a fetcher");
    let bytes = fetcher.bytes(&ImageSource::Base64("A".repeat(400_000))).await.expect("decodes");
    assert_eq!(bytes.len(), 300_000);
}

struct Folder {
    _held: tempfile::TempDir,
    outside: PathBuf,
    fetcher: ImageFetcher,
    root: PathBuf,
}

fn folder() -> Folder {
    let held = tempfile::tempdir().expect("a folder");
    let root = held.path().join("root");
    std::fs::create_dir_all(root.join("inner")).expect("a folder");
    std::fs::write(root.join("inner/a.png"), b"picture").expect("written");
    let outside = held.path().join("secret.png");
    std::fs::write(&outside, b"secret").expect("written");
    let fetcher = ImageFetcher::new(&ImagesConfig { root: root.clone(), ..config() }).expect("a fetcher");
    Folder { _held: held, outside, fetcher, root }
}

impl Folder {
    async fn bytes(&self, path: impl Into<PathBuf>) -> Result<Bytes, Fault> {
        self.fetcher.bytes(&ImageSource::Path(path.into())).await.map(|fetched| fetched.clone())
    }
}

#[tokio::test]
async fn files_below_the_root_are_read() {
    let folder = folder();
    assert_eq!(folder.bytes("inner/a.png").await.expect("read"), "picture");
    assert_eq!(folder.bytes(folder.root.join("inner/a.png")).await.expect("read"), "picture");
}

#[tokio::test]
async fn files_elsewhere_are_forbidden() {
    let folder = folder();
    assert_rejected(folder.bytes("../secret.png").await, Reason::ForbiddenSource, "images.root");
    assert_rejected(folder.bytes("inner/../../secret.png").await, Reason::ForbiddenSource, "images.root");
    assert_rejected(folder.bytes("../nothing.png").await, Reason::ForbiddenSource, "images.root");
    assert_rejected(folder.bytes(folder.outside.clone()).await, Reason::ForbiddenSource, "images.root");
    assert_rejected(folder.bytes("/etc/passwd").await, Reason::ForbiddenSource, "images.root");
    let closed = ImageFetcher::new(&config()).expect("a fetcher");
    assert_rejected(
        closed.bytes(&ImageSource::Path("a".into())).await.map(|_| Bytes::new()),
        Reason::ForbiddenSource,
        "set images.root",
    );
}

#[cfg(unix)]
#[tokio::test]
async fn links_out_of_the_root_are_forbidden() {
    let folder = folder();
    std::os::unix::fs::symlink(&folder.outside, folder.root.join("link.png")).expect("linked");
    std::os::unix::fs::symlink(folder.root.join("inner"), folder.root.join("alias")).expect("linked");
    assert_rejected(folder.bytes("link.png").await, Reason::ForbiddenSource, "images.root");
    assert_eq!(folder.bytes("alias/a.png").await.expect("a link within the root"), "picture");
}

#[tokio::test]
async fn what_is_no_file_is_refused() {
    let folder = folder();
    assert_rejected(folder.bytes("inner").await, Reason::ForbiddenSource, "regular file");
    assert_rejected(folder.bytes("gone.png").await, Reason::ImageUnavailable, "gone.png");
    assert_rejected(folder.bytes("inner/a.png/b.png").await, Reason::ImageUnavailable, "b.png");
    assert_rejected(folder.bytes("a\0b").await, Reason::ImageUnavailable, "path");
}

/// What an unmounted folder looks like: empty, or gone.
#[tokio::test]
async fn a_root_that_is_not_mounted_is_an_outage_and_no_posts_fault() {
    let folder = folder();
    let aside = folder.root.with_extension("aside");
    std::fs::rename(&folder.root, &aside).expect("moved");
    let is_outage = |outcome: &Result<Bytes, Fault>| matches!(outcome, Err(Fault::Retry { outage: Outage::ImageHost, detail, .. }) if detail.contains("images.root"));
    let gone = folder.bytes("inner/a.png").await;
    assert!(is_outage(&gone), "{gone:?}");
    std::fs::create_dir(&folder.root).expect("the mount point");
    let empty = folder.bytes("inner/a.png").await;
    assert!(is_outage(&empty), "{empty:?}");
    std::fs::remove_dir(&folder.root).expect("removed");
    std::fs::rename(&aside, &folder.root).expect("moved back");
    assert_eq!(folder.bytes("inner/a.png").await.expect("read"), "picture");
}

/// Whoever holds bytes holds their share: the next ones are not read before there is room.
#[tokio::test]
async fn pictures_in_memory_are_bounded() {
    let held = tempfile::tempdir().expect("a folder");
    std::fs::write(held.path().join("a.png"), vec![1; 60_000]).expect("written");
    let limits = ImagesConfig { max_bytes: 100_000, max_inflight_bytes: 100_000, ..config() };
    let fetcher = ImageFetcher::new(&ImagesConfig { root: held.path().to_owned(), ..limits }).expect("a fetcher");
    let path = ImageSource::Path("a.png".into());
    let base64 = ImageSource::Base64("A".repeat(40_000));
    for source in [&path, &base64] {
        let first = fetcher.bytes(&path).await.expect("room for one");
        let mut second = Box::pin(fetcher.bytes(source));
        let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(waited.is_err(), "120,000 bytes of 100,000");
        drop(first);
        second.await.expect("room again");
    }
}

#[tokio::test]
async fn files_are_bounded() {
    let folder = folder();
    let mut file = std::fs::File::create(folder.root.join("big.png")).expect("created");
    file.write_all(&[0; 1_001]).expect("written");
    assert_rejected(folder.bytes("big.png").await, Reason::TooLarge, "1001 bytes");
}

#[test]
fn root_that_is_no_folder_is_a_clear_error() {
    for root in ["/nonexistent/feedlens", "/dev/null"] {
        let error = ImageFetcher::new(&ImagesConfig { root: root.into(), ..config() }).expect_err("no folder");
        assert!(format!("{error:#}").contains("images.root"), "{error:#}");
    }
}
