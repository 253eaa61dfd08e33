//! The messages to and from a compiler process. Each piece is a length and so many bytes.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::Bytes;
use modelhost_nn::Untried;

use super::Functions;

/// What to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The unchanged component.
    Plain,
    /// The component with additional exports that read its instance.
    Instrumented,
    /// The component with the content of an instance as the initial content of every instance.
    Snapshot,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Plain, Self::Instrumented, Self::Snapshot];
}

/// The value of an export of an instrumented instance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A memory.
    Memory(Bytes),
    /// The bits of a number.
    Number(u64),
}

impl Value {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Memory(content) => content.len() as u64,
            Self::Number(_) => 8,
        }
    }
}

/// The job of a process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    /// Its memory bound.
    pub(crate) bytes: u64,
    pub(crate) task: Task,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Task {
    Compile(Compile),
    TryGraphs(Untried),
}

impl Task {
    /// The name of the step, for people.
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Compile(_) => "compile",
            Self::TryGraphs(_) => "graphs",
        }
    }
}

/// One compilation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Compile {
    pub(crate) kind: Kind,
    pub(crate) wasm: Bytes,
    /// Functions that an earlier compilation of the component compiled.
    pub(crate) functions: Functions,
    /// Values by the names of their exports.
    pub(crate) state: Vec<(String, Value)>,
}

impl Job {
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        write_piece(to, &self.bytes.to_le_bytes())?;
        match &self.task {
            Task::Compile(compile) => {
                write_piece(to, b"c")?;
                compile.write(to)?;
            }
            Task::TryGraphs(Untried { files, onnxruntime }) => {
                write_piece(to, b"g")?;
                let library = onnxruntime.as_ref().map(|path| path.as_os_str().as_bytes());
                write_piece(to, library.unwrap_or_default())?;
                write_count(to, files.len())?;
                for (name, content) in files {
                    write_piece(to, name.as_bytes())?;
                    write_piece(to, content)?;
                }
            }
        }
        to.flush()
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut reader = Reader { from, left: u64::MAX };
        let bytes = reader.number()?;
        let task = match &reader.piece()?[..] {
            b"c" => Task::Compile(Compile::read(&mut reader)?),
            b"g" => {
                let library = OsString::from_vec(reader.piece()?.into());
                let count = reader.count()?;
                let files = (0..count).map(|_| Ok((reader.name()?, reader.piece()?)));
                let files = files.collect::<io::Result<_>>()?;
                Task::TryGraphs(Untried { files, onnxruntime: (!library.is_empty()).then(|| library.into()) })
            }
            _ => return Err(broken()),
        };
        Ok(Self { bytes, task })
    }
}

impl Compile {
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        write_piece(to, &[self.kind as u8])?;
        write_piece(to, &self.wasm)?;
        write_functions(to, &self.functions)?;
        write_count(to, self.state.len())?;
        for (name, value) in &self.state {
            write_piece(to, name.as_bytes())?;
            match value {
                Value::Memory(content) => {
                    write_piece(to, b"m")?;
                    write_piece(to, content)?;
                }
                Value::Number(bits) => {
                    write_piece(to, b"n")?;
                    write_piece(to, &bits.to_le_bytes())?;
                }
            }
        }
        Ok(())
    }

    fn read(reader: &mut Reader<'_, impl Read>) -> io::Result<Self> {
        let kind = reader.piece()?;
        let kind = Kind::ALL.into_iter().find(|known| kind[..] == [*known as u8]).ok_or_else(broken)?;
        let (wasm, functions) = (reader.piece()?, reader.functions()?);
        let mut state = Vec::new();
        for _ in 0..reader.count()? {
            let name = reader.name()?;
            let value = match &reader.piece()?[..] {
                b"m" => Value::Memory(reader.piece()?),
                _ => Value::Number(reader.number()?),
            };
            state.push((name, value));
        }
        Ok(Self { kind, wasm, functions, state })
    }
}

/// The result of a job.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// The code, and the newly compiled functions.
    Compiled { code: Bytes, functions: Functions },
    /// The component cannot be instrumented. Holds the reason.
    Refused(String),
    /// The graphs were read, with or without errors.
    Tried,
    /// The job failed. Holds the reason.
    Failed(String),
}

impl Answer {
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Compiled { code, functions } => {
                write_piece(to, b"c")?;
                write_piece(to, code)?;
                write_functions(to, functions)?;
            }
            Self::Refused(why) => {
                write_piece(to, b"r")?;
                write_piece(to, why.as_bytes())?;
            }
            Self::Tried => write_piece(to, b"t")?,
            Self::Failed(why) => {
                write_piece(to, b"f")?;
                write_piece(to, why.as_bytes())?;
            }
        }
        to.flush()
    }

    /// Reads at most `most` bytes, because the process read untrusted input.
    pub(crate) fn read(from: &mut impl Read, most: u64) -> io::Result<Self> {
        let mut reader = Reader { from, left: most };
        Ok(match &reader.piece()?[..] {
            b"c" => Self::Compiled { code: reader.piece()?, functions: reader.functions()? },
            b"r" => Self::Refused(reader.text()?),
            b"t" => Self::Tried,
            b"f" => Self::Failed(reader.text()?),
            _ => return Err(broken()),
        })
    }
}

fn broken() -> io::Error {
    io::Error::other("what came is no message of a compiler")
}

fn write_piece(to: &mut impl Write, piece: &[u8]) -> io::Result<()> {
    write_count(to, piece.len())?;
    to.write_all(piece)
}

fn write_count(to: &mut impl Write, count: usize) -> io::Result<()> {
    to.write_all(&(count as u64).to_le_bytes())
}

fn write_functions(to: &mut impl Write, functions: &Functions) -> io::Result<()> {
    write_count(to, functions.len())?;
    functions.iter().try_for_each(|(key, code)| {
        write_piece(to, key)?;
        write_piece(to, code)
    })
}

struct Reader<'a, R> {
    from: &'a mut R,
    left: u64,
}

impl<R: Read> Reader<'_, R> {
    fn count(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn piece(&mut self) -> io::Result<Bytes> {
        let length = self.count()?;
        self.left = self.left.checked_sub(length.saturating_add(8)).ok_or_else(broken)?;
        let mut piece = Vec::new();
        // The buffer grows as bytes arrive. The length is not trusted.
        if self.from.take(length).read_to_end(&mut piece)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(piece.into())
    }

    fn number(&mut self) -> io::Result<u64> {
        let piece = self.piece()?;
        Ok(u64::from_le_bytes(piece[..].try_into().map_err(|_| broken())?))
    }

    fn name(&mut self) -> io::Result<String> {
        String::from_utf8(self.piece()?.into()).map_err(|_| broken())
    }

    fn text(&mut self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.piece()?).into_owned())
    }

    fn functions(&mut self) -> io::Result<Functions> {
        let mut functions = Functions::new();
        for _ in 0..self.count()? {
            functions.push((self.piece()?, self.piece()?));
        }
        Ok(functions)
    }
}
