//! Field offsets of a tracepoint, from the text of its `format` file. They differ between kernels.
//!
//! Enters: the text. Leaves: for every field its offset and size in bytes. Pure; no input panics.

/// One field of a tracepoint's record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field<'a> {
    name: &'a str,
    offset_bytes: u32,
    size_bytes: u32,
}

/// The layout of a tracepoint's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TracepointFormat<'a> {
    fields: Vec<Field<'a>>,
}

/// A tracepoint's layout is not one the programs can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A line that should describe a field does not.
    #[error("cannot parse {line:?}")]
    Line {
        /// The line.
        line: String,
    },
    /// There is no such field.
    #[error("it has no field {name}")]
    NoField {
        /// The field.
        name: &'static str,
    },
    /// The field's size is not what the programs read.
    #[error("field {name} has {found} bytes, expected {expected}")]
    Size {
        /// The field.
        name: &'static str,
        /// In bytes.
        found: u32,
        /// In bytes.
        expected: u32,
    },
}

impl<'a> TracepointFormat<'a> {
    /// Parses `<tracefs>/events/<group>/<name>/format`.
    ///
    /// # Errors
    /// [`FormatError::Line`] for a field that is not described as the kernel does.
    pub(super) fn parse(text: &'a str) -> Result<Self, FormatError> {
        let described = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("field:"));
        let fields = described
            .map(|line| parse_field(line).ok_or_else(|| FormatError::Line { line: line.into() }))
            .collect::<Result<_, _>>()?;
        Ok(Self { fields })
    }

    /// Offset in bytes of field `name`, which must have `size_bytes` bytes.
    ///
    /// # Errors
    /// [`FormatError::NoField`], [`FormatError::Size`].
    pub(super) fn offset_bytes(
        &self,
        name: &'static str,
        size_bytes: u32,
    ) -> Result<u32, FormatError> {
        let field = self
            .fields
            .iter()
            .find(|field| field.name == name)
            .ok_or(FormatError::NoField { name })?;
        if field.size_bytes == size_bytes {
            Ok(field.offset_bytes)
        } else {
            Err(FormatError::Size {
                name,
                found: field.size_bytes,
                expected: size_bytes,
            })
        }
    }
}

/// `field:unsigned long i_ino;	offset:8;	size:8;	signed:0;`
fn parse_field(line: &str) -> Option<Field<'_>> {
    let mut parts = line.split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let declaration = declaration.split('[').next()?.trim_end();
    let name = declaration.rsplit([' ', '*', '\t']).next()?;
    let offset_bytes = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let size_bytes = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    (!name.is_empty()).then_some(Field {
        name,
        offset_bytes,
        size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = "name: mm_filemap_fault\nID: 597\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:unsigned long i_ino;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:dev_t s_dev;\toffset:16;\tsize:4;\tsigned:0;\n\
        \tfield:const char * filename;\toffset:24;\tsize:8;\tsigned:0;\n\
        \tfield:char comm[16];\toffset:32;\tsize:16;\tsigned:0;\n\
        \tfield:__data_loc char[] name;\toffset:48;\tsize:4;\tsigned:0;\n\n\
        print fmt: \"dev=%d:%d\", REC->s_dev\n";

    #[test]
    fn fields_are_found_by_name_and_size() {
        let format = TracepointFormat::parse(FAULT).unwrap();
        let check = |name, size, expected| assert_eq!(format.offset_bytes(name, size), expected);
        check("i_ino", 8, Ok(8));
        check("s_dev", 4, Ok(16));
        check("filename", 8, Ok(24));
        check("comm", 16, Ok(32));
        check("index", 8, Err(FormatError::NoField { name: "index" }));
        let found = 8;
        check(
            "i_ino",
            4,
            Err(FormatError::Size {
                name: "i_ino",
                found,
                expected: 4,
            }),
        );
    }

    #[test]
    fn broken_lines_are_errors() {
        let check = |line: &str| {
            let error = FormatError::Line { line: line.into() };
            assert_eq!(TracepointFormat::parse(line), Err(error));
        };
        check("field:");
        check("field:int a");
        check("field:int a;\toffset:x;\tsize:4;");
        check("field:int a;\toffset:0;");
        check("field:int a;\toffset:0;\tsize:99999999999;");
        assert_eq!(TracepointFormat::parse("").unwrap().fields, []);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(field:|offset:|size:|[ ;*\\[\\]0-9a-z\n\t]){0,60}") {
            let _ = TracepointFormat::parse(&text);
        }
    }
}
