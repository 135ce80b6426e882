//! The form of a request, filled in, to be printed, signed and stamped: as PDF and as DOCX.
//!
//! Both are written here, as a page of text needs no library. The PDF names a Chinese font that
//! readers have rather than carrying one (ISO 32000-1 section 9.7.5.2, the encoding
//! UniGB-UTF16-H); the DOCX is a ZIP with stored files (ECMA-376 part 2).

use std::borrow::Cow;
use std::fmt::Write;

use crate::http::media_type::{DOCX, PDF};

/// What the form says: a title, lines of label and value, and where to sign.
#[derive(Debug, Clone)]
pub struct Form {
    /// The title, in English and Chinese.
    pub title: (&'static str, &'static str),
    /// Label in English and Chinese, and value.
    pub lines: Vec<((&'static str, &'static str), String)>,
    /// What the undersigned declares, in English and Chinese.
    pub declaration: (&'static str, &'static str),
}

/// The lines to fill in by hand.
const BY_HAND: [(&str, &str); 4] = [
    ("Signature of the operator", "操作员签字"),
    ("Signature of the legal representative", "法定代表人签字"),
    ("Company stamp", "公司盖章"),
    ("Date", "日期"),
];

impl Form {
    fn rows(&self) -> Vec<String> {
        let mut rows = vec![format!("{}  {}", self.title.1, self.title.0), String::new()];
        for ((english, chinese), value) in &self.lines {
            rows.push(format!("{chinese} / {english}: {value}"));
        }
        rows.push(String::new());
        rows.push(self.declaration.1.to_owned());
        rows.push(self.declaration.0.to_owned());
        for (english, chinese) in BY_HAND {
            rows.push(String::new());
            rows.push(format!("{chinese} / {english}: ______________________"));
        }
        rows
    }

    /// The form as PDF 1.4.
    pub fn pdf(&self) -> Vec<u8> {
        let mut page = String::from("BT\n/F1 11 Tf\n72 780 Td\n");
        for row in self.rows() {
            for line in wrap(&row) {
                let mut text = String::new();
                for unit in line.encode_utf16() {
                    // Writing to a string does not fail.
                    let _ = write!(text, "{unit:04X}");
                }
                let _ = write!(page, "<{text}> Tj\n0 -20 Td\n");
            }
        }
        page.push_str("ET\n");
        let objects = [
            "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R \
             /Resources << /Font << /F1 5 0 R >> >> >>"
                .to_owned(),
            format!("<< /Length {} >>\nstream\n{page}endstream", page.len()),
            "<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light-UniGB-UTF16-H \
             /Encoding /UniGB-UTF16-H /DescendantFonts [6 0 R] >>"
                .to_owned(),
            "<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /CIDSystemInfo \
             << /Registry (Adobe) /Ordering (GB1) /Supplement 4 >> /FontDescriptor 7 0 R \
             /DW 1000 /W [1 95 500] >>"
                .to_owned(),
            "<< /Type /FontDescriptor /FontName /STSong-Light /Flags 6 /FontBBox [-25 -254 1000 \
             880] /ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 93 >>"
                .to_owned(),
        ];
        let mut file = String::from("%PDF-1.4\n");
        let mut places = Vec::with_capacity(objects.len());
        for (index, object) in objects.iter().enumerate() {
            places.push(file.len());
            let _ = write!(file, "{} 0 obj\n{object}\nendobj\n", index + 1);
        }
        let table = file.len();
        let _ = write!(file, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
        for place in places {
            let _ = writeln!(file, "{place:010} 00000 n ");
        }
        let _ = write!(
            file,
            "trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n",
            objects.len() + 1
        );
        file.into_bytes()
    }

    /// The form as DOCX.
    pub fn docx(&self) -> Vec<u8> {
        let mut body = String::new();
        for row in self.rows() {
            let _ = write!(
                body,
                "<w:p><w:r><w:t xml:space=\"preserve\">{}</w:t></w:r></w:p>",
                escape(&row)
            );
        }
        let document = format!(
            "{XML}<w:document xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\">\
             <w:body>{body}<w:sectPr/></w:body></w:document>"
        );
        let types = format!(
            "{XML}<Types xmlns=\"http://schemas.openxmlformats.org/package/2006/content-types\">\
             <Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>\
             <Override PartName=\"/word/document.xml\" ContentType=\"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml\"/>\
             </Types>"
        );
        let relations = format!(
            "{XML}<Relationships xmlns=\"http://schemas.openxmlformats.org/package/2006/relationships\">\
             <Relationship Id=\"r1\" Type=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument\" Target=\"word/document.xml\"/>\
             </Relationships>"
        );
        zip(&[
            ("[Content_Types].xml", types.as_bytes()),
            ("_rels/.rels", relations.as_bytes()),
            ("word/document.xml", document.as_bytes()),
        ])
    }
}

const XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Lines that fit the page: 80 half-width columns.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut columns = 0;
    for character in text.chars() {
        let width = if character.is_ascii() { 1 } else { 2 };
        if columns + width > 80 {
            lines.push(String::new());
            columns = 0;
        }
        columns += width;
        if let Some(line) = lines.last_mut() {
            line.push(character);
        }
    }
    lines
}

/// A ZIP archive with stored files (APPNOTE.TXT 6.3.9 sections 4.3.7, 4.3.12, 4.3.16).
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut directory = Vec::new();
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    for (name, content) in files {
        let offset = size(&archive);
        // Version 2.0, no flags, stored, 1980-01-01 00:00: the same input gives the same bytes.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32(content).to_le_bytes());
        common.extend(size(content).to_le_bytes());
        common.extend(size(content).to_le_bytes());
        common.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
        common.extend([0, 0]);
        archive.extend(*b"PK\x03\x04");
        archive.extend(&common);
        archive.extend(name.as_bytes());
        archive.extend(*content);
        directory.extend(*b"PK\x01\x02");
        directory.extend([20, 0]);
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let count = u16::try_from(files.len()).unwrap_or(0).to_le_bytes();
    let start = size(&archive);
    archive.extend(&directory);
    archive.extend(*b"PK\x05\x06");
    archive.extend([0; 4]);
    archive.extend(count);
    archive.extend(count);
    archive.extend(size(&directory).to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0, 0]);
    archive
}

/// CRC-32 as ZIP wants it (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// The media type of a paper, found in its content; none where papers are not of that kind.
pub fn media_type(content: &[u8]) -> Option<&'static str> {
    const END: usize = 1024;
    let tail = &content[content.len().saturating_sub(END)..];
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    if content.starts_with(&[0xff, 0xd8, 0xff]) && holds(tail, &[0xff, 0xd9]) {
        Some("image/jpeg")
    } else if content.starts_with(b"\x89PNG\r\n\x1a\n") && holds(tail, b"IEND") {
        Some("image/png")
    } else if content.starts_with(b"%PDF-") && holds(tail, b"%%EOF") {
        // A paper is looked at by a person: nothing in it may act by itself.
        let acts = [&b"/JavaScript"[..], b"/JS", b"/Launch", b"/EmbeddedFile"];
        let plain = names_unescaped(content);
        (!acts.iter().any(|part| holds(&plain, part))).then_some(PDF)
    } else if content.starts_with(b"PK\x03\x04")
        && holds(content, b"word/document.xml")
        && !holds(content, b"vbaProject.bin")
    {
        Some(DOCX)
    } else {
        None
    }
}

/// `content` of a PDF with the `#xx` of its names written out (ISO 32000-1 section 7.3.5), so that no
/// name hides behind them.
fn names_unescaped(content: &[u8]) -> Cow<'_, [u8]> {
    if !content.contains(&b'#') {
        return Cow::Borrowed(content);
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut plain = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escaped = match (byte, after) {
            (b'#', &[high, low, ..]) => digit(high).zip(digit(low)),
            _ => None,
        };
        plain.push(escaped.map_or(byte, |(high, low)| high << 4 | low));
        if escaped.is_some() {
            rest = &after[2..];
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        Form {
            title: ("Change of mobile number", "更换手机号申请"),
            lines: vec![(("Account", "商户号"), "acme <& 有限公司>".into())],
            declaration: ("All of this is true.", "以上内容属实。"),
        }
    }

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn forms_are_recognised_as_what_they_are() {
        assert_eq!(media_type(&form().pdf()), Some("application/pdf"));
        assert!(media_type(&form().docx()).unwrap().ends_with("document"));
    }

    #[test]
    fn what_acts_or_lies_is_no_paper() {
        let pdf = form().pdf();
        let mut acting = pdf.clone();
        acting.splice(20..20, *b"/JavaScript");
        let mut escaped = pdf.clone();
        escaped.splice(20..20, *b"/#4aava#53cript");
        for bad in [
            &b""[..],
            b"MZ\x90",
            b"<html>",
            b"%PDF-1.4 cut",
            b"\xff\xd8\xff cut",
            &acting,
            &escaped,
        ] {
            assert_eq!(media_type(bad), None);
        }
    }

    #[test]
    fn long_lines_are_wrapped() {
        assert_eq!(wrap(&"a".repeat(170)).len(), 3);
        assert_eq!(wrap(&"汉".repeat(41)).len(), 2);
    }
}
