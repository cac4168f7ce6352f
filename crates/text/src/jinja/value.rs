//! Values of a running template. Every string and list counts against one budget of memory as long as it lives, and every
//! character knows where it came from.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use super::{Fault, Origin, parser};

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// What one rendering has left.
pub(super) struct Meter {
    fuel: Cell<u64>,
    memory: Cell<usize>,
}

/// Bytes counted for a value beside what it holds.
const VALUE: usize = 64;

impl Meter {
    pub fn new(fuel: u64, memory: usize) -> Rc<Self> {
        Rc::new(Self { fuel: Cell::new(fuel), memory: Cell::new(memory) })
    }

    /// Uses up fuel.
    pub fn spend(&self, fuel: usize) -> Result<()> {
        match self.fuel.get().checked_sub(fuel as u64) {
            Some(left) => {
                self.fuel.set(left);
                Ok(())
            }
            None => Err(Fault::Fuel),
        }
    }

    /// Uses up fuel for touching so many bytes.
    pub fn spend_bytes(&self, bytes: usize) -> Result<()> {
        self.spend(bytes / 64)
    }
}

/// A share of the memory, given back when it is dropped.
pub(super) struct Charge {
    meter: Rc<Meter>,
    bytes: usize,
}

impl Charge {
    pub fn new(meter: &Rc<Meter>) -> Self {
        Self { meter: meter.clone(), bytes: 0 }
    }

    /// Takes more, before it is allocated.
    pub fn grow(&mut self, bytes: usize) -> Result<()> {
        self.meter.spend_bytes(bytes)?;
        match self.meter.memory.get().checked_sub(bytes) {
            Some(left) => {
                self.meter.memory.set(left);
                self.bytes += bytes;
                Ok(())
            }
            None => Err(Fault::Memory),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.memory.set(self.meter.memory.get() + self.bytes);
    }
}

/// A string and the origin of each of its characters.
pub(super) struct Text {
    text: String,
    /// (end, origin) of runs of characters, ascending.
    runs: Vec<(usize, Origin)>,
    /// From the filter `safe`: what is added to it is escaped, as in Jinja.
    pub markup: bool,
    charge: Charge,
}

impl Text {
    pub fn new(meter: &Rc<Meter>) -> Result<Self> {
        let mut charge = Charge::new(meter);
        charge.grow(VALUE)?;
        Ok(Self { text: String::new(), runs: vec![], markup: false, charge })
    }

    pub fn of(meter: &Rc<Meter>, text: &str, origin: Origin) -> Result<Self> {
        let mut new = Self::new(meter)?;
        new.push(text, origin)?;
        Ok(new)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn meter(&self) -> &Rc<Meter> {
        &self.charge.meter
    }

    pub fn push(&mut self, text: &str, origin: Origin) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let same = self.runs.last().is_some_and(|(_, last)| *last == origin);
        // A vector that grows has up to twice its length.
        self.charge.grow(2 * text.len() + if same { 0 } else { 32 })?;
        self.text.push_str(text);
        match self.runs.last_mut() {
            Some((end, _)) if same => *end = self.text.len(),
            _ => self.runs.push((self.text.len(), origin)),
        }
        Ok(())
    }

    /// Parts of `range` with one origin each.
    pub fn runs(&self, range: Range<usize>) -> impl Iterator<Item = (&str, Origin)> {
        let first = self.runs.partition_point(|(end, _)| *end <= range.start);
        let mut start = range.start;
        self.runs[first..].iter().map_while(move |(end, origin)| {
            let part = start..(*end).min(range.end);
            start = part.end;
            (part.start < part.end).then(|| (&self.text[part], *origin))
        })
    }

    pub fn push_range(&mut self, from: &Self, range: Range<usize>) -> Result<()> {
        from.runs(range).try_for_each(|(text, origin)| self.push(text, origin))
    }

    pub fn push_all(&mut self, from: &Self) -> Result<()> {
        self.push_range(from, 0..from.text.len())
    }

    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        let mut new = Self::new(self.meter())?;
        new.push_range(self, range)?;
        new.markup = self.markup;
        Ok(new)
    }

    /// Each character replaced.
    pub fn map(&self, mut map: impl FnMut(char, &mut String)) -> Result<Self> {
        let mut new = Self::new(self.meter())?;
        let mut buffer = String::new();
        for (text, origin) in self.runs(0..self.text.len()) {
            // In pieces, so that the buffer stays small.
            for c in text.chars() {
                map(c, &mut buffer);
                if buffer.len() >= 4096 {
                    new.push(&buffer, origin)?;
                    buffer.clear();
                }
            }
            new.push(&buffer, origin)?;
            buffer.clear();
        }
        new.markup = self.markup;
        Ok(new)
    }

    /// The least trusted origin in it.
    pub fn weakest(&self) -> Origin {
        self.runs.iter().map(|(_, o)| *o).max().unwrap_or(Origin::Template)
    }

    /// Bytes that are the character at index `i`, in characters; none beyond the end.
    pub fn char_range(&self, i: usize) -> Option<Range<usize>> {
        let (start, c) = self.text.char_indices().nth(i)?;
        Some(start..start + c.len_utf8())
    }

    pub fn into_parts(mut self) -> (String, Vec<(usize, Origin)>) {
        (std::mem::take(&mut self.text), std::mem::take(&mut self.runs))
    }
}

#[derive(Clone)]
pub(super) enum Value {
    /// With what to say when it is used.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<Text>),
    List(Rc<List>),
    Dict(Rc<Dict>),
    Namespace(Rc<Dict>),
    Loop(Rc<Loop>),
    Macro(Rc<MacroValue>),
    Function(Function),
    /// A method of a value, not called yet.
    Method(Rc<(Value, String)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
}

/// A list or, if it cannot change, a tuple.
pub(super) struct List {
    items: RefCell<Vec<Value>>,
    pub tuple: bool,
    charge: RefCell<Charge>,
}

impl List {
    pub fn new(meter: &Rc<Meter>, tuple: bool) -> Result<Self> {
        let mut charge = Charge::new(meter);
        charge.grow(VALUE)?;
        Ok(Self { items: RefCell::new(vec![]), tuple, charge: RefCell::new(charge) })
    }

    pub fn push(&self, value: Value) -> Result<()> {
        self.charge.borrow_mut().grow(2 * VALUE)?;
        self.items.borrow_mut().push(value);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.items.borrow().len()
    }

    pub fn get(&self, i: usize) -> Option<Value> {
        self.items.borrow().get(i).cloned()
    }

    pub fn meter(&self) -> Rc<Meter> {
        self.charge.borrow().meter.clone()
    }

    /// The items as they are now.
    pub fn items(&self) -> Result<Items> {
        let mut charge = Charge::new(&self.charge.borrow().meter);
        charge.grow(VALUE * self.len())?;
        Ok(Items { items: self.items.borrow().clone(), _charge: charge })
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Vec<Value>) -> T) -> T {
        change(&mut self.items.borrow_mut())
    }
}

/// A copy of a list's items, counted.
pub(super) struct Items {
    pub items: Vec<Value>,
    _charge: Charge,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(String),
}

/// A dictionary in the order of insertion; also the attributes of a namespace.
pub(super) struct Dict {
    entries: RefCell<Vec<(Value, Value)>>,
    index: RefCell<HashMap<Key, usize>>,
    charge: RefCell<Charge>,
}

impl Dict {
    pub fn new(meter: &Rc<Meter>) -> Result<Self> {
        let mut charge = Charge::new(meter);
        charge.grow(2 * VALUE)?;
        Ok(Self { entries: RefCell::default(), index: RefCell::default(), charge: RefCell::new(charge) })
    }

    fn key(&self, key: &Value) -> Result<Key> {
        Ok(match key {
            Value::None => Key::None,
            Value::Bool(b) => Key::Int(i128::from(*b)),
            Value::Int(i) => Key::Int(*i),
            Value::Float(f) if *f == f.trunc() && f.abs() < 1e18 => Key::Int(*f as i128),
            Value::Float(f) => Key::Float(f.to_bits()),
            Value::Str(text) => {
                self.charge.borrow().meter.spend_bytes(text.as_str().len())?;
                Key::Str(text.as_str().to_owned())
            }
            other => return Err(Fault::message(format!("{} cannot be a key", other.type_name()))),
        })
    }

    pub fn get(&self, key: &Value) -> Result<Option<Value>> {
        let at = self.index.borrow().get(&self.key(key)?).copied();
        Ok(at.map(|at| self.entries.borrow()[at].1.clone()))
    }

    pub fn get_str(&self, key: &str) -> Result<Option<Value>> {
        self.charge.borrow().meter.spend_bytes(key.len())?;
        let at = self.index.borrow().get(&Key::Str(key.to_owned())).copied();
        Ok(at.map(|at| self.entries.borrow()[at].1.clone()))
    }

    pub fn insert(&self, key: Value, value: Value) -> Result<()> {
        let id = self.key(&key)?;
        let len = if let Key::Str(s) = &id { s.len() } else { 0 };
        if let Some(at) = self.index.borrow().get(&id) {
            let old = std::mem::replace(&mut self.entries.borrow_mut()[*at].1, value);
            drop_flat(vec![old]);
            return Ok(());
        }
        self.charge.borrow_mut().grow(6 * VALUE + 2 * len)?;
        self.index.borrow_mut().insert(id, self.len());
        self.entries.borrow_mut().push((key, value));
        Ok(())
    }

    /// Takes a key out.
    pub fn remove(&self, key: &Value) -> Result<Option<Value>> {
        let Some(at) = self.index.borrow_mut().remove(&self.key(key)?) else { return Ok(None) };
        self.charge.borrow().meter.spend(self.len())?;
        self.index.borrow_mut().values_mut().for_each(|i| *i -= usize::from(*i > at));
        Ok(Some(self.entries.borrow_mut().remove(at).1))
    }

    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    pub fn entry(&self, i: usize) -> Option<(Value, Value)> {
        self.entries.borrow().get(i).cloned()
    }

    pub fn meter(&self) -> Rc<Meter> {
        self.charge.borrow().meter.clone()
    }

    fn take(&self) -> Vec<(Value, Value)> {
        self.index.take();
        self.entries.take()
    }
}

/// What `loop` is in the body of a loop.
pub(super) struct Loop {
    pub items: Rc<Items>,
    pub index0: usize,
}

/// A macro with the variables that it saw where it was written.
pub(super) struct MacroValue {
    pub definition: Arc<parser::Macro>,
    pub seen: Vec<(String, Value)>,
    pub caller: bool,
    pub _charge: Charge,
}

/// Drops values without recursion, however deep they hold one another.
fn drop_flat(mut stack: Vec<Value>) {
    while let Some(value) = stack.pop() {
        match value {
            Value::List(list) => stack.extend(Rc::into_inner(list).map(|l| l.items.take()).unwrap_or_default()),
            Value::Dict(dict) | Value::Namespace(dict) => {
                stack.extend(Rc::into_inner(dict).map(|d| d.take()).unwrap_or_default().into_iter().map(|(_, v)| v));
            }
            Value::Method(method) => stack.extend(Rc::into_inner(method).map(|m| m.0)),
            Value::Macro(one) => {
                if let Some(mut one) = Rc::into_inner(one) {
                    stack.extend(std::mem::take(&mut one.seen).into_iter().map(|(_, v)| v));
                }
            }
            Value::Loop(one) => {
                if let Some(mut items) = Rc::into_inner(one).and_then(|one| Rc::into_inner(one.items)) {
                    stack.append(&mut items.items);
                }
            }
            _ => {}
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        drop_flat(self.items.take());
    }
}

impl Drop for Dict {
    fn drop(&mut self) {
        drop_flat(self.take().into_iter().map(|(_, v)| v).collect());
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        drop_flat(std::mem::take(&mut self.items));
    }
}

impl Drop for MacroValue {
    fn drop(&mut self) {
        drop_flat(std::mem::take(&mut self.seen).into_iter().map(|(_, v)| v).collect());
    }
}

impl Value {
    /// Empties containers that may hold themselves, so that they can be freed.
    pub fn clear_container(&self) {
        match self {
            Self::List(list) => drop_flat(list.items.take()),
            Self::Dict(dict) | Self::Namespace(dict) => drop_flat(dict.take().into_iter().map(|(_, v)| v).collect()),
            _ => {}
        }
    }

    /// Whether it can hold other values.
    pub fn is_container(&self) -> bool {
        !matches!(
            self,
            Self::Undefined(_)
                | Self::None
                | Self::Bool(_)
                | Self::Int(_)
                | Self::Float(_)
                | Self::Str(_)
                | Self::Function(_)
        )
    }

    pub fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    pub fn str(meter: &Rc<Meter>, text: &str, origin: Origin) -> Result<Self> {
        Ok(Self::Str(Rc::new(Text::of(meter, text, origin)?)))
    }

    pub fn list(meter: &Rc<Meter>, items: impl IntoIterator<Item = Self>) -> Result<Self> {
        let list = List::new(meter, false)?;
        items.into_iter().try_for_each(|v| list.push(v))?;
        Ok(Self::List(Rc::new(list)))
    }

    pub fn tuple(meter: &Rc<Meter>, items: impl IntoIterator<Item = Self>) -> Result<Self> {
        let list = List::new(meter, true)?;
        items.into_iter().try_for_each(|v| list.push(v))?;
        Ok(Self::List(Rc::new(list)))
    }

    /// From JSON; every string in it has this origin.
    pub fn from_json(meter: &Rc<Meter>, json: &serde_json::Value, origin: Origin, depth: usize) -> Result<Self> {
        use serde_json::Value as Json;
        if depth == 0 {
            return Err(Fault::message("lists and dictionaries more than 128 deep"));
        }
        meter.spend(1)?;
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Self::Int(i.into()),
                (_, Some(u)) => Self::Int(u.into()),
                _ => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Self::str(meter, s, origin)?,
            Json::Array(items) => {
                let list = List::new(meter, false)?;
                for item in items {
                    list.push(Self::from_json(meter, item, origin, depth - 1)?)?;
                }
                Self::List(Rc::new(list))
            }
            Json::Object(map) => {
                let dict = Dict::new(meter)?;
                for (key, value) in map {
                    let value = Self::from_json(meter, value, origin, depth - 1)?;
                    dict.insert(Self::str(meter, key, origin)?, value)?;
                }
                Self::Dict(Rc::new(dict))
            }
        })
    }

    /// As Python names the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(l) if l.tuple => "tuple",
            Self::List(_) => "list",
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
        }
    }

    /// Fails for an undefined value with what is known about it.
    pub fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(what) => Err(Fault::message(what.to_string())),
            other => Ok(other),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Str(s) => !s.as_str().is_empty(),
            Self::List(l) => l.len() > 0,
            Self::Dict(d) => d.len() > 0,
            _ => true,
        }
    }

    pub fn as_text(&self) -> Option<&Rc<Text>> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// A number as a float, booleans included.
    pub fn as_f64(&self) -> Option<f64> {
        Some(match self {
            Self::Bool(b) => f64::from(u8::from(*b)),
            Self::Int(i) => *i as f64,
            Self::Float(f) => *f,
            _ => return None,
        })
    }

    /// A whole number, booleans included.
    pub fn as_int(&self) -> Option<i128> {
        Some(match self {
            Self::Bool(b) => i128::from(*b),
            Self::Int(i) => *i,
            _ => return None,
        })
    }
}
