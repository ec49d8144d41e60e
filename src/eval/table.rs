//! CSV files that name texts or pictures by id, as retrieval studies give them: `text_id,text` and `image_id[,image]`.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use csv::ByteRecord;

/// Columns that hold a text, by name.
const TEXT_COLUMNS: [&str; 4] = ["text", "caption", "query", "title"];
/// Columns that hold a picture's file, by name.
const FILE_COLUMNS: [&str; 6] = ["image", "file", "path", "image_path", "file_name", "filename"];

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `text_id` or `image_id`.
    pub id: String,
    /// The text, or the picture's file where a column names one.
    pub value: Option<String>,
}

/// Reads `text_id` and the text: a column `text`, `caption`, `query` or `title`, or the only other one.
///
/// # Errors
/// Names the file, and the line or column at fault.
pub fn read_texts(file: &Path) -> Result<Vec<Row>> {
    read(file, "text_id", |header| {
        let named = find(header, &TEXT_COLUMNS);
        let only_other = (header.len() == 2).then(|| (0..2).find(|column| header[*column] != "text_id")).flatten();
        named.or(only_other).map(Some).with_context(|| {
            format!("which column holds the text? Name it \"text\"; the columns are: {}", header.join(", "))
        })
    })
}

/// Reads `image_id` and, where there is a column `image`, `file` or `path`, the picture's file.
///
/// # Errors
/// Names the file, and the line or column at fault.
pub fn read_images(file: &Path) -> Result<Vec<Row>> {
    read(file, "image_id", |header| Ok(find(header, &FILE_COLUMNS)))
}

fn find(header: &[String], names: &[&str]) -> Option<usize> {
    names.iter().find_map(|name| header.iter().position(|column| column == name))
}

fn read(file: &Path, id_name: &str, value_column: impl FnOnce(&[String]) -> Result<Option<usize>>) -> Result<Vec<Row>> {
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut reader = csv::ReaderBuilder::new().from_reader(opened);
    let name = || file.display().to_string();
    let header = reader.byte_headers().with_context(name)?.clone();
    let header = header.iter().map(|field| text(field, file, 1)).collect::<Result<Vec<_>>>()?;
    let header = header.iter().map(|field| field.trim().to_lowercase()).collect::<Vec<_>>();
    let id_column = find(&header, &[id_name, "id"]).with_context(|| {
        format!("{}: there is no column {id_name}; its first line names: {}", name(), header.join(", "))
    })?;
    let value_column = value_column(&header).with_context(name)?;
    let (mut rows, mut lines) = (Vec::new(), HashMap::new());
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).with_context(name)? {
        let line = record.position().map_or(0, csv::Position::line);
        let id = text(&record[id_column], file, line)?.trim().to_owned();
        ensure!(!id.is_empty(), "{} line {line}: the {id_name} is empty", name());
        if let Some(first) = lines.insert(id.clone(), line) {
            bail!("{}: {id_name} {id:?} occurs twice, on lines {first} and {line}", name());
        }
        let value = value_column.map(|column| text(&record[column], file, line)).transpose()?;
        rows.push(Row { id, value });
    }
    ensure!(!rows.is_empty(), "{} has no rows below its header", name());
    Ok(rows)
}

fn text(field: &[u8], file: &Path, line: u64) -> Result<String> {
    match std::str::from_utf8(field) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => bail!(
            "{} line {line} is not UTF-8; it looks like {}: convert the file, such as with `iconv -f {} -t UTF-8`",
            file.display(),
            encoding(field).0,
            encoding(field).1,
        ),
    }
}

/// A guess at what is not UTF-8, for people and for iconv.
fn encoding(field: &[u8]) -> (&'static str, &'static str) {
    if field.starts_with(b"\xff\xfe") || field.starts_with(b"\xfe\xff") {
        return ("UTF-16 (Excel's \"Unicode text\")", "UTF-16");
    }
    ("GBK (Excel's CSV on a Chinese system)", "GB18030")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("t.csv");
        std::fs::write(&file, content).expect("writes");
        (folder, file)
    }

    fn rows(read: Result<Vec<Row>>) -> Vec<(String, Option<String>)> {
        read.expect("reads").into_iter().map(|row| (row.id, row.value)).collect()
    }

    fn row(id: &str, value: Option<&str>) -> (String, Option<String>) {
        (id.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn byte_order_mark_line_ends_quotes_and_column_order() {
        let (_folder, file) =
            table("\u{feff}text_id,caption\r\nw-1,\"红, \"\"苹果\"\"\n第二行\"\r\n w-2 ,\r\n".as_bytes());
        let expected = [row("w-1", Some("红, \"苹果\"\n第二行")), row("w-2", Some(""))];
        assert_eq!(rows(read_texts(&file)), expected);
        let (_folder, file) = table(b"lang,Text,ID\nzh,a,1\n");
        assert_eq!(rows(read_texts(&file)), [row("1", Some("a"))]);
        let (_folder, file) = table("内容,text_id\na,1\n".as_bytes());
        assert_eq!(rows(read_texts(&file)), [row("1", Some("a"))]);
    }

    #[test]
    fn pictures_may_name_files() {
        let (_folder, file) = table(b"image_id\nImage-1.jpg\n");
        assert_eq!(rows(read_images(&file)), [row("Image-1.jpg", None)]);
        let (_folder, file) = table(b"image_id,caption,image\n1,x,a/1.png\n");
        assert_eq!(rows(read_images(&file)), [row("1", Some("a/1.png"))]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (content, wanted) in [
            (&b"text_id,text\n1,a\n2,b\n1,c\n"[..], "text_id \"1\" occurs twice, on lines 2 and 4"),
            (b"text_id,text\n1,\xba\xec\n", "line 2 is not UTF-8; it looks like GBK"),
            (b"\xff\xfet\0e\0x\0t\0", "line 1 is not UTF-8; it looks like UTF-16"),
            (b"1,apple\n2,pear\n", "no column text_id; its first line names: 1, apple"),
            (b"text_id,a,b\n1,2,3\n", "which column holds the text?"),
            (b"text_id,text\n1,a,b\n", "line: 2"),
            (b"text_id,text\n,a\n", "line 2: the text_id is empty"),
            (b"text_id,text\n", "no rows"),
            (b"", "no column text_id"),
        ] {
            let (_folder, file) = table(content);
            let error = format!("{:#}", read_texts(&file).expect_err("bad"));
            assert!(error.contains(wanted) && error.contains("t.csv"), "{wanted:?} is not in {error:?}");
        }
    }
}
