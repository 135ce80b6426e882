//! The XML of the interface, read strictly and written plainly.
//!
//! One root element (`xml`, or `root` in refund notifications) with elements in it that hold
//! text: that is all there is. A DTD, an entity of its own, an attribute, an element in an
//! element, a comment, a processing instruction, text between elements, a second element of one
//! name, another encoding than UTF-8: each is refused, as none is ever sent and each has been the
//! way into some parser. Values are the text as it stands, line ends as XML 1.0 section 2.11 has
//! them, the five predefined entities and character references resolved.

use quick_xml::Reader;
use quick_xml::escape::{minimal_escape, resolve_predefined_entity};
use quick_xml::events::{BytesDecl, BytesRef, BytesStart, Event};

use super::fields::{Fields, FieldsError, is_name};

/// Why XML was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Too large.
    #[error("the XML is larger than {max} bytes")]
    TooLarge {
        /// The most read, in bytes.
        max: usize,
    },
    /// Not UTF-8, or declared as something else.
    #[error("the XML is not UTF-8")]
    Encoding,
    /// Not well-formed, or not one root with flat elements.
    #[error("the XML is not one element with flat elements of text in it")]
    Shape,
    /// A document type declaration.
    #[error("the XML has a document type declaration")]
    Dtd,
    /// A reference to an entity other than the five predefined ones.
    #[error("the XML refers to an entity that is not predefined")]
    Entity,
    /// The fields.
    #[error("a field of the XML is not acceptable")]
    Fields(#[from] FieldsError),
}

impl Fields {
    /// Largest XML read, in bytes.
    pub const MAX_XML: usize = 128 * 1024;

    /// Reads the fields of one message.
    pub fn from_xml(xml: &[u8]) -> Result<Self, XmlError> {
        if xml.len() > Self::MAX_XML {
            return Err(XmlError::TooLarge { max: Self::MAX_XML });
        }
        let text = std::str::from_utf8(xml).map_err(|_| XmlError::Encoding)?;
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_end_names = true;
        config.check_comments = true;
        config.allow_dangling_amp = false;
        config.allow_unmatched_ends = false;
        config.trim_markup_names_in_closing_tags = true;

        let mut fields = Self::default();
        let mut place = Place::Start;
        loop {
            let start = reader.buffer_position() == 0;
            let event = reader.read_event().map_err(|_| XmlError::Shape)?;
            place = match (place, event) {
                (_, Event::DocType(_)) => return Err(XmlError::Dtd),
                (Place::Start, Event::Decl(declaration)) if start => {
                    check_declaration(&declaration)?;
                    Place::Start
                }
                (Place::Start, Event::Start(root))
                    if ["xml", "root"].contains(&element(&root)?.as_str()) =>
                {
                    Place::Root
                }
                (Place::Root, Event::Start(child)) => Place::Field(element(&child)?, String::new()),
                (Place::Root, Event::End(_)) => Place::End,
                (Place::Field(name, mut value), event) => match event {
                    Event::Text(text) => {
                        value.push_str(&text.xml10_content());
                        Place::Field(name, value)
                    }
                    Event::CData(text) => {
                        value.push_str(&text.xml10_content());
                        Place::Field(name, value)
                    }
                    Event::GeneralRef(reference) => {
                        resolve(&reference, &mut value)?;
                        Place::Field(name, value)
                    }
                    Event::End(_) => {
                        fields.insert(name, value)?;
                        Place::Root
                    }
                    _ => return Err(XmlError::Shape),
                },
                (place @ (Place::Start | Place::Root | Place::End), Event::Text(text))
                    if text.chars().all(is_space) =>
                {
                    place
                }
                (Place::End, Event::Eof) => return Ok(fields),
                (_, Event::GeneralRef(_)) => return Err(XmlError::Entity),
                _ => return Err(XmlError::Shape),
            };
        }
    }

    /// As the XML that the interface takes.
    pub fn to_xml(&self) -> String {
        let mut xml = String::from("<xml>");
        for (name, value) in self.iter() {
            // A bare carriage return would be read back as a line feed.
            let value = minimal_escape(value)
                .replace('\r', "&#13;")
                .replace('>', "&gt;");
            xml.push_str(&format!("<{name}>{value}</{name}>"));
        }
        xml.push_str("</xml>");
        xml
    }
}

enum Place {
    Start,
    Root,
    Field(String, String),
    End,
}

fn element(start: &BytesStart<'_>) -> Result<String, XmlError> {
    if !start.attributes_raw().chars().all(is_space) {
        return Err(XmlError::Shape);
    }
    let name = start.name();
    let name: &str = name.as_ref();
    if is_name(name) {
        Ok(name.to_owned())
    } else {
        Err(FieldsError::Name.into())
    }
}

fn check_declaration(declaration: &BytesDecl<'_>) -> Result<(), XmlError> {
    if !declaration.version().is_ok_and(|version| version == "1.0") {
        return Err(XmlError::Shape);
    }
    match declaration.encoding() {
        None => Ok(()),
        Some(Ok(encoding)) if encoding.eq_ignore_ascii_case("utf-8") => Ok(()),
        Some(_) => Err(XmlError::Encoding),
    }
}

fn resolve(reference: &BytesRef<'_>, value: &mut String) -> Result<(), XmlError> {
    match reference.resolve_char_ref() {
        Ok(Some(char)) => value.push(char),
        Ok(None) => {
            let name = reference.xml10_content();
            value.push_str(resolve_predefined_entity(&name).ok_or(XmlError::Entity)?);
        }
        Err(_) => return Err(XmlError::Entity),
    }
    Ok(())
}

fn is_space(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(xml: &str) -> Result<Fields, XmlError> {
        Fields::from_xml(xml.as_bytes())
    }

    #[test]
    fn values_are_the_text_as_it_stands() {
        let fields = read(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<xml>\n  <a><![CDATA[ <b>&amp;\n]]></a>\n<b> 1 &lt;&#x4e2d;&#38; </b><c/><d></d><e>x<![CDATA[y]]>z\r\n</e></xml>\n",
        )
        .unwrap();
        assert_eq!(
            fields.iter().collect::<Vec<_>>(),
            [
                ("a", " <b>&amp;\n"),
                ("b", " 1 <中& "),
                ("c", ""),
                ("d", ""),
                ("e", "xyz\n")
            ]
        );
    }

    #[test]
    fn what_is_never_sent_is_refused() {
        for (xml, error) in [
            ("<!DOCTYPE xml><xml></xml>", XmlError::Dtd),
            (
                "<!DOCTYPE xml [<!ENTITY a \"b\">]><xml><a>&a;</a></xml>",
                XmlError::Dtd,
            ),
            ("<xml><!DOCTYPE xml><a>1</a></xml>", XmlError::Dtd),
            ("<xml><a>&b;</a></xml>", XmlError::Entity),
            ("<xml><a>&#0;</a></xml>", XmlError::Entity),
            ("<xml>&amp;</xml>", XmlError::Entity),
            ("<xml><a><b>1</b></a></xml>", XmlError::Shape),
            ("<xml a=\"1\"></xml>", XmlError::Shape),
            ("<xml><a b=\"1\">1</a></xml>", XmlError::Shape),
            ("<xml><!-- --></xml>", XmlError::Shape),
            ("<xml><a>1<!-- -->2</a></xml>", XmlError::Shape),
            ("<xml><?p?></xml>", XmlError::Shape),
            ("<xml>text</xml>", XmlError::Shape),
            ("<xml><![CDATA[ ]]></xml>", XmlError::Shape),
            ("<xml></xml><xml></xml>", XmlError::Shape),
            ("<xml></xml>x", XmlError::Shape),
            ("x<xml></xml>", XmlError::Shape),
            ("<html></html>", XmlError::Shape),
            ("<xml>", XmlError::Shape),
            ("<xml><a>1</xml>", XmlError::Shape),
            ("<xml><a>1</b></xml>", XmlError::Shape),
            ("", XmlError::Shape),
            (" <?xml version=\"1.0\"?><xml></xml>", XmlError::Shape),
            ("<?xml version=\"1.1\"?><xml></xml>", XmlError::Shape),
            (
                "<?xml version=\"1.0\" encoding=\"GBK\"?><xml></xml>",
                XmlError::Encoding,
            ),
        ] {
            assert_eq!(read(xml).unwrap_err(), error, "{xml}");
        }
        assert_eq!(
            read("<xml><a>1</a><a>1</a></xml>").unwrap_err(),
            FieldsError::Twice { name: "a".into() }.into()
        );
        assert!(read("<xml><a>\u{1}</a></xml>").is_err());
        assert_eq!(
            Fields::from_xml(b"<xml>\xff</xml>"),
            Err(XmlError::Encoding)
        );
        let huge = format!("<xml><a>{}</a></xml>", "x".repeat(Fields::MAX_XML));
        assert!(matches!(read(&huge), Err(XmlError::TooLarge { .. })));
        let deep = "<xml>".repeat(20_000);
        assert!(read(&deep).is_err());
        let many: String = (0..=Fields::MAX)
            .map(|i| format!("<a{i}>1</a{i}>"))
            .collect();
        assert!(matches!(
            read(&format!("<xml>{many}</xml>")),
            Err(XmlError::Fields(FieldsError::TooMany { .. }))
        ));
    }
}
