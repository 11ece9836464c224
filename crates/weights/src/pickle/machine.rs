//! The machine that a pickle runs on. Its objects are nodes of one list, so that no depth of nesting can exhaust
//! the stack of this program, neither in building nor in dropping them.

use super::Problem;
use super::globals::Global;
use std::collections::HashMap;

/// The number of a node.
pub(super) type Id = usize;

/// An object that a pickle has built.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `None`, and everything that is not looked at.
    Nothing,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 64 bits, little-endian.
    Long(Vec<u8>),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// What a persistent id names: a storage.
    Storage(Storage),
    Tensor(Tensor),
}

/// A storage as a checkpoint names it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub class: Option<crate::DType>,
    pub key: String,
    /// Numbers in it; bytes of an untyped one.
    pub len: u64,
    /// The part of another storage that it is: where it starts, in numbers. Of the older format only.
    pub view: Option<(String, u64, u64)>,
}

/// A tensor as a checkpoint describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub storage: Id,
    pub dtype: Option<crate::DType>,
    pub offset: i64,
    pub sizes: Vec<i64>,
    pub strides: Vec<i64>,
}

/// The objects of a finished pickle.
pub(super) struct Objects {
    pub nodes: Vec<Node>,
    pub root: Id,
    /// Where the pickle ends.
    pub end: usize,
}

impl Objects {
    pub(super) fn get(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Nothing)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// Runs the pickle that starts at `at`.
pub(super) fn run(bytes: &[u8], at: usize) -> Result<Objects, Problem> {
    let mut machine = Machine {
        bytes,
        at,
        nodes: vec![Node::Nothing],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        if let Some(root) = machine.step()? {
            return Ok(Objects {
                nodes: machine.nodes,
                root,
                end: machine.at,
            });
        }
    }
}

impl Machine<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or(Problem::Cut {
            at: self.bytes.len(),
        })?;
        self.at += len;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, len: usize) -> Result<u64, Problem> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn counted(&mut self, len: usize) -> Result<&[u8], Problem> {
        let count = self.number(len)?;
        let cut = Problem::Cut {
            at: self.bytes.len(),
        };
        self.take(usize::try_from(count).map_err(|_| cut)?)
    }

    fn line(&mut self) -> Result<String, Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b'\n').ok_or(Problem::Cut {
            at: self.bytes.len(),
        })?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn damaged(&self, what: &'static str) -> Problem {
        Problem::Damaged { what, at: self.at }
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        // What lies below a mark belongs to another opcode.
        let least = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= least {
            return Err(self.damaged("an opcode finds nothing to work on"));
        }
        self.stack
            .pop()
            .ok_or_else(|| self.damaged("an opcode finds nothing to work on"))
    }

    fn top(&self) -> Result<Id, Problem> {
        let least = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(id) if self.stack.len() > least => Ok(*id),
            _ => Err(self.damaged("an opcode finds nothing to work on")),
        }
    }

    /// All objects above the last mark.
    fn above_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| self.damaged("an opcode finds no mark"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, Problem> {
        let (pairs, rest) = items.as_chunks::<2>();
        match rest {
            [] => Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect()),
            _ => Err(self.damaged("a key without a value")),
        }
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Nothing)
    }

    /// One opcode; the root when it was the last.
    fn step(&mut self) -> Result<Option<Id>, Problem> {
        let start = self.at;
        let code = self.number(1)? as u8;
        match code {
            b'.' => return self.pop().map(Some),
            // PROTO and FRAME tell readers what to expect.
            0x80 => drop(self.number(1)?),
            0x95 => drop(self.number(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::Nothing),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'h' => self.remember(1)?,
            b'j' => self.remember(4)?,
            b'q' => self.memoize(Some(1))?,
            b'r' => self.memoize(Some(4))?,
            0x94 => self.memoize(None)?,
            b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => self.constant(code)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'B' | b'C' | 0x8e | 0x96 => self.text(code)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' | 0x8f | 0x91 => {
                self.collection(code)?;
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(code)?,
            b'c' | 0x93 => self.global(code)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(code, start)?,
            _ => {
                return Err(Problem::Opcode {
                    name: opcode_name(code),
                    code,
                    at: start,
                });
            }
        }
        Ok(None)
    }

    fn remember(&mut self, len: usize) -> Result<(), Problem> {
        let place = self.number(len)?;
        let id = self.memo.get(&place).copied();
        let id = id.ok_or_else(|| self.damaged("it remembers what it was not told"))?;
        self.stack.push(id);
        Ok(())
    }

    fn memoize(&mut self, len: Option<usize>) -> Result<(), Problem> {
        let place = match len {
            Some(len) => self.number(len)?,
            None => self.memo.len() as u64,
        };
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn constant(&mut self, code: u8) -> Result<(), Problem> {
        let node = match code {
            b'J' => Node::Int((self.number(4)? as u32).cast_signed().into()),
            b'K' => Node::Int(self.number(1)?.cast_signed()),
            b'M' => Node::Int(self.number(2)?.cast_signed()),
            // Floats are the learning rates and losses that trainers note.
            b'G' => {
                self.take(8)?;
                Node::Nothing
            }
            code => {
                let bytes = self.counted(if code == 0x8a { 1 } else { 4 })?;
                match bytes {
                    [] => Node::Int(0),
                    [.., last] if bytes.len() <= 8 => {
                        let fill = if last & 0x80 == 0 { 0 } else { 0xff };
                        let mut whole = [fill; 8];
                        whole[..bytes.len()].copy_from_slice(bytes);
                        Node::Int(i64::from_le_bytes(whole))
                    }
                    long => Node::Long(long.to_vec()),
                }
            }
        };
        self.push(node);
        Ok(())
    }

    fn text(&mut self, code: u8) -> Result<(), Problem> {
        let len = match code {
            0x8c | b'U' | b'C' => 1,
            b'X' | b'T' | b'B' => 4,
            _ => 8,
        };
        let bytes = self.counted(len)?;
        let node = match code {
            b'X' | 0x8c | 0x8d => match std::str::from_utf8(bytes) {
                Ok(text) => Node::Text(text.to_owned()),
                Err(_) => return Err(self.damaged("a text that is not UTF-8")),
            },
            // Python 2's strings are texts in its checkpoints.
            b'U' | b'T' => Node::Text(String::from_utf8_lossy(bytes).into_owned()),
            _ => Node::Nothing,
        };
        self.push(node);
        Ok(())
    }

    fn collection(&mut self, code: u8) -> Result<(), Problem> {
        let node = match code {
            b')' => Node::Tuple(Vec::new()),
            b't' => Node::Tuple(self.above_mark()?),
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..code - 0x84 {
                    items.push(self.pop()?);
                }
                items.reverse();
                Node::Tuple(items)
            }
            b']' => Node::List(Vec::new()),
            b'l' => Node::List(self.above_mark()?),
            b'}' => Node::Dict(Vec::new()),
            b'd' => {
                let items = self.above_mark()?;
                Node::Dict(self.pairs(&items)?)
            }
            0x91 => {
                self.above_mark()?;
                Node::Nothing
            }
            // A set, whose items no tensor needs.
            _ => Node::Nothing,
        };
        self.push(node);
        Ok(())
    }

    /// Adds to a list or dictionary; what is not looked at takes anything.
    fn fill(&mut self, code: u8) -> Result<(), Problem> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.above_mark()?,
        };
        let pairs = match code {
            b's' | b'u' => self.pairs(&items)?,
            _ => Vec::new(),
        };
        let target = self.top()?;
        let wrong = self.damaged("it adds to what is no list or dictionary");
        match (self.nodes.get_mut(target), code) {
            (Some(Node::List(list)), b'a' | b'e') => list.extend(items),
            (Some(Node::Dict(dict)), b's' | b'u') => dict.extend(pairs),
            (Some(Node::Nothing), _) => {}
            _ => return Err(wrong),
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<(), Problem> {
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.node(module), self.node(name)) {
                (Node::Text(module), Node::Text(name)) => (module.clone(), name.clone()),
                _ => return Err(self.damaged("a class whose name is no text")),
            }
        };
        let global = Global::find(&module, &name).ok_or(Problem::Global {
            name: format!("{module}.{name}"),
        })?;
        self.push(Node::Global(global));
        Ok(())
    }

    /// What in Python would call something.
    fn object(&mut self, code: u8, start: usize) -> Result<(), Problem> {
        match code {
            b'b' => {
                // State set on an object: of dictionaries and tensors it is no part of the weights.
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage));
            }
            code => {
                if code == 0x92 {
                    self.pop()?;
                }
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let node = self.call(callee, arguments, start)?;
                self.push(node);
            }
        }
        Ok(())
    }

    fn call(&self, callee: Id, arguments: Id, at: usize) -> Result<Node, Problem> {
        let Node::Global(global) = self.node(callee) else {
            let what = match self.node(callee) {
                Node::Text(_) => "a text",
                Node::Tensor(_) | Node::Storage(_) => "a tensor",
                _ => "what is neither class nor function",
            };
            return Err(Problem::Call { what, at });
        };
        let Node::Tuple(arguments) = self.node(arguments) else {
            return Err(self.damaged("a call without a tuple of arguments"));
        };
        match global {
            Global::Dict => match arguments.first().map(|id| self.node(*id)) {
                Some(Node::List(pairs)) => self.dictionary(pairs),
                Some(Node::Dict(pairs)) => Ok(Node::Dict(pairs.clone())),
                _ => Ok(Node::Dict(Vec::new())),
            },
            Global::Tensor => self.tensor(arguments, None),
            Global::TypedTensor => {
                let dtype = arguments.get(6).map(|id| self.node(*id));
                let Some(Node::Global(Global::DType(dtype))) = dtype else {
                    return Err(self.damaged("a tensor without a type"));
                };
                self.tensor(arguments, Some(*dtype))
            }
            Global::First => {
                Ok(arguments
                    .first()
                    .map_or(Node::Nothing, |id| match self.node(*id) {
                        Node::Tensor(tensor) => Node::Tensor(tensor.clone()),
                        _ => Node::Nothing,
                    }))
            }
            Global::Storage(_) | Global::DType(_) | Global::Ignored => Ok(Node::Nothing),
        }
    }

    /// A dictionary of a list of pairs, as Python 2's `OrderedDict` pickles itself.
    fn dictionary(&self, pairs: &[Id]) -> Result<Node, Problem> {
        let pair = |id: &Id| match self.node(*id) {
            Node::Tuple(pair) | Node::List(pair) => match pair[..] {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        };
        let pairs: Option<Vec<_>> = pairs.iter().map(pair).collect();
        pairs
            .map(Node::Dict)
            .ok_or_else(|| self.damaged("a dictionary of what are no pairs"))
    }

    fn tensor(&self, arguments: &[Id], dtype: Option<crate::DType>) -> Result<Node, Problem> {
        let wrong = || self.damaged("a tensor whose description makes no sense");
        let [storage, offset, sizes, strides, ..] = arguments else {
            return Err(wrong());
        };
        let numbers = |id: &Id| match self.node(*id) {
            Node::Tuple(items) | Node::List(items) if items.len() <= 32 => items
                .iter()
                .map(|id| match self.node(*id) {
                    Node::Int(n) => Some(*n),
                    _ => None,
                })
                .collect::<Option<Vec<i64>>>(),
            _ => None,
        };
        let (Node::Storage(_), Node::Int(offset)) = (self.node(*storage), self.node(*offset))
        else {
            return Err(wrong());
        };
        Ok(Node::Tensor(Tensor {
            storage: *storage,
            dtype,
            offset: *offset,
            sizes: numbers(sizes).ok_or_else(wrong)?,
            strides: numbers(strides).ok_or_else(wrong)?,
        }))
    }

    /// `("storage", class, key, place, length)`, and in the older format a view of another storage.
    fn storage(&self, id: Id) -> Result<Storage, Problem> {
        let wrong = || self.damaged("a persistent id that names no storage");
        let Node::Tuple(items) = self.node(id) else {
            return Err(wrong());
        };
        let [kind, class, key, _, len, rest @ ..] = &items[..] else {
            return Err(wrong());
        };
        let key_text = |id: Id| match self.node(id) {
            Node::Text(key) => Some(key.clone()),
            Node::Int(key) => Some(key.to_string()),
            _ => None,
        };
        let whole = |id: Id| match self.node(id) {
            Node::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let is_storage = matches!(self.node(*kind), Node::Text(kind) if kind == "storage");
        let (true, Node::Global(Global::Storage(class))) = (is_storage, self.node(*class)) else {
            return Err(wrong());
        };
        let view = match rest.first().map(|id| self.node(*id)) {
            Some(Node::Tuple(view)) => match view[..] {
                [view_key, offset, size] => {
                    let parts = (key_text(view_key), whole(offset), whole(size));
                    let (Some(view_key), Some(offset), Some(size)) = parts else {
                        return Err(wrong());
                    };
                    Some((view_key, offset, size))
                }
                _ => return Err(wrong()),
            },
            _ => None,
        };
        Ok(Storage {
            class: *class,
            key: key_text(*key).ok_or_else(wrong)?,
            len: whole(*len).ok_or_else(wrong)?,
            view,
        })
    }
}

/// What `pickletools` calls the opcodes that are refused.
fn opcode_name(code: u8) -> &'static str {
    match code {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "",
    }
}
