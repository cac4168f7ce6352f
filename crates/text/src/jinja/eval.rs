//! The interpreter: walks the tree, with fuel for every step and a bound on how deep it goes.

use std::{cell::Cell, collections::HashMap, rc::Rc, time::SystemTime};

use super::{
    Fault, Origin,
    builtins::{self, Args},
    lexer::is_space,
    parser::{Arguments, Compare, Expr, Macro, Node, NodeKind, Op, Postfix, Target},
    python,
    value::{Charge, Dict, Function, Items, List, Loop, MacroValue, Meter, Result, Text, Value},
};

/// Expressions, blocks and macro calls within each other while it runs; published templates reach about 30. (Measured: 120 took between
/// 256 and 512 KiB of stack; a thread has 2 MiB.)
const MAX_DEPTH: usize = 100;
/// Variables of loops and macros around a macro.
const MAX_SEEN: usize = 1000;
/// Items of a `range`, as in Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;

#[derive(Default)]
struct Frame {
    variables: HashMap<String, Value>,
    /// The macro that runs in this frame: its body sees nothing of the frames below but the first.
    running: Option<Rc<MacroValue>>,
}

pub(super) struct Machine {
    pub meter: Rc<Meter>,
    pub now: SystemTime,
    globals: HashMap<String, Value>,
    frames: Vec<Frame>,
    out: Vec<Text>,
    depth: usize,
    /// Of the node that runs, for errors.
    pub line: Cell<usize>,
    /// Containers that were given other containers: they may hold themselves.
    changed: Vec<Value>,
}

#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Machine {
    pub fn new(meter: Rc<Meter>, now: SystemTime, globals: HashMap<String, Value>) -> Self {
        Self {
            meter,
            now,
            globals,
            frames: vec![Frame::default()],
            out: vec![],
            depth: 0,
            line: Cell::new(1),
            changed: vec![],
        }
    }

    /// The rendering of a template.
    pub fn run(&mut self, nodes: &[Node]) -> Result<Text> {
        let text = self.capture(|m| m.nodes(nodes).map(drop));
        for container in std::mem::take(&mut self.changed) {
            container.clear_container();
        }
        text
    }

    pub fn text(&self, text: &str, origin: Origin) -> Result<Value> {
        Value::str(&self.meter, text, origin)
    }

    pub fn list(&self, items: impl IntoIterator<Item = Value>) -> Result<Value> {
        Value::list(&self.meter, items)
    }

    /// To be called when `container` is given `value`.
    pub fn note_change(&mut self, container: &Value, value: &Value) -> Result<()> {
        if value.is_container() {
            // Bounded by the fuel; each is kept until the end.
            self.meter.spend(4)?;
            self.changed.push(container.clone());
        }
        Ok(())
    }

    pub fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::message(format!(
                "expressions, blocks and macro calls more than {MAX_DEPTH} deep; does a macro call itself without end?"
            )));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    fn capture(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<Text> {
        self.out.push(Text::new(&self.meter)?);
        let result = run(self);
        let text = self.out.pop().expect("pushed above");
        result.map(|()| text)
    }

    fn in_frame<T>(&mut self, frame: Frame, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.frames.push(frame);
        let result = run(self);
        self.frames.pop();
        result
    }

    fn lookup(&self, name: &str) -> Value {
        let mut found = None;
        for frame in self.frames.iter().rev() {
            found = frame.variables.get(name);
            if found.is_none()
                && let Some(running) = &frame.running
            {
                found = running.seen.iter().find(|(n, _)| n == name).map(|(_, v)| v);
                found = found.or_else(|| self.frames[0].variables.get(name));
                break;
            }
            if found.is_some() {
                break;
            }
        }
        match found.or_else(|| self.globals.get(name)) {
            Some(value) => value.clone(),
            None => Value::undefined(format!("'{name}' is undefined")),
        }
    }

    fn set(&mut self, name: &str, value: Value) {
        self.frames.last_mut().expect("there is one").variables.insert(name.to_owned(), value);
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(name, attribute) => {
                let namespace = self.lookup(name);
                let Value::Namespace(attributes) = &namespace else {
                    let what = format!("`{name}.{attribute}` cannot be assigned to: {name} is no namespace");
                    return Err(Fault::message(what));
                };
                if attribute.starts_with('_') {
                    return Err(Fault::message(format!(
                        "a namespace takes no attribute that begins with `_`: {attribute}"
                    )));
                }
                self.note_change(&namespace, &value)?;
                attributes.insert(self.text(attribute, Origin::Template)?, value)?;
            }
            Target::Tuple(targets) => {
                let items = builtins::iterate(self, &value)?;
                if items.items.len() != targets.len() {
                    let what = format!("cannot unpack {} values into {} variables", items.items.len(), targets.len());
                    return Err(Fault::message(what));
                }
                for (target, value) in targets.iter().zip(&items.items) {
                    self.assign(target, value.clone())?;
                }
            }
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node]) -> Result<Flow> {
        self.deeper(|m| {
            for node in nodes {
                m.line.set(node.line);
                let flow = m.node(&node.kind)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    fn print(&mut self, value: &Value) -> Result<()> {
        python::print(self.out.last_mut().expect("a capture runs"), value)
    }

    fn node(&mut self, node: &NodeKind) -> Result<Flow> {
        self.meter.spend(1)?;
        match node {
            NodeKind::Data(text) => self.out.last_mut().expect("a capture runs").push(text, Origin::Template)?,
            NodeKind::Output(expr) => {
                let value = self.eval(expr)?;
                self.print(&value)?;
            }
            NodeKind::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.eval(condition)?.is_true() {
                        return self.nodes(body);
                    }
                }
                return self.nodes(otherwise);
            }
            NodeKind::For { target, iter, filter, body, otherwise } => {
                return self.for_loop(target, iter, filter.as_ref(), body, otherwise);
            }
            NodeKind::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign(target, value)?;
            }
            NodeKind::SetBlock { name, filters, body } => {
                let value = self.filtered(filters, body)?;
                self.set(name, value);
            }
            NodeKind::Filter { filters, body } => {
                let value = self.filtered(filters, body)?;
                self.print(&value)?;
            }
            NodeKind::Macro(definition) => {
                let value = self.close_over(definition)?;
                self.set(&definition.name, value);
            }
            NodeKind::Call { caller, call } => {
                let caller = self.close_over(caller)?;
                let Expr::Postfix(base, chain) = call else { unreachable!("the parser checks it") };
                let (last, first) = chain.split_last().expect("the parser checks it");
                let Postfix::Call(arguments) = last else { unreachable!("the parser checks it") };
                let callee = self.chain(base, first)?;
                let mut args = self.args(arguments)?;
                args.keyword.push(("caller".into(), caller));
                let value = self.call(&callee, args)?;
                self.print(&value)?;
            }
            NodeKind::With(assignments, body) => {
                let values = assignments.iter().map(|(t, e)| Ok((t, self.eval(e)?))).collect::<Result<Vec<_>>>()?;
                return self.in_frame(Frame::default(), |m| {
                    values.into_iter().try_for_each(|(target, value)| m.assign(target, value))?;
                    m.nodes(body)
                });
            }
            NodeKind::Scope(body) => return self.in_frame(Frame::default(), |m| m.nodes(body)),
            NodeKind::Break => return Ok(Flow::Break),
            NodeKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn filtered(&mut self, filters: &[Postfix], body: &[Node]) -> Result<Value> {
        let text = self.in_frame(Frame::default(), |m| m.capture(|m| m.nodes(body).map(drop)))?;
        filters.iter().try_fold(Value::Str(Rc::new(text)), |value, filter| self.postfix(value, filter))
    }

    #[inline(never)]
    fn for_loop(
        &mut self,
        target: &Target,
        iter: &Expr,
        filter: Option<&Expr>,
        body: &[Node],
        otherwise: &[Node],
    ) -> Result<Flow> {
        let iter = self.eval(iter)?;
        let mut items = Rc::new(builtins::iterate(self, &iter)?);
        if let Some(filter) = filter {
            let kept = List::new(&self.meter, false)?;
            for item in &items.items {
                let keep = self.in_frame(Frame::default(), |m| {
                    m.assign(target, item.clone())?;
                    Ok(m.eval(filter)?.is_true())
                })?;
                if keep {
                    kept.push(item.clone())?;
                }
            }
            items = Rc::new(kept.items()?);
        }
        for (index0, item) in items.items.iter().enumerate() {
            self.meter.spend(2)?;
            let flow = self.in_frame(Frame::default(), |m| {
                m.set("loop", Value::Loop(Rc::new(Loop { items: items.clone(), index0 })));
                m.assign(target, item.clone())?;
                m.nodes(body)
            })?;
            if flow == Flow::Break {
                return Ok(Flow::Next);
            }
        }
        if items.items.is_empty() { self.nodes(otherwise) } else { Ok(Flow::Next) }
    }

    /// A macro with what it sees here. Variables of the template itself are looked up when it runs.
    fn close_over(&mut self, definition: &std::sync::Arc<Macro>) -> Result<Value> {
        let mut charge = Charge::new(&self.meter);
        charge.grow(256)?;
        let mut seen: Vec<(String, Value)> = vec![];
        for frame in self.frames[1..].iter().rev() {
            let outer = frame.running.as_ref().map_or(&[][..], |r| &r.seen);
            let all = frame.variables.iter().chain(outer.iter().map(|(n, v)| (n, v)));
            for (name, value) in all {
                self.meter.spend(1 + seen.len() / 8)?;
                if seen.len() >= MAX_SEEN {
                    return Err(Fault::message(format!("a macro that sees more than {MAX_SEEN} variables")));
                }
                if !seen.iter().any(|(n, _)| n == name) {
                    charge.grow(128 + name.len())?;
                    seen.push((name.clone(), value.clone()));
                }
            }
            if frame.running.is_some() {
                break;
            }
        }
        let caller = definition.name == "caller";
        Ok(Value::Macro(Rc::new(MacroValue { definition: definition.clone(), seen, caller, _charge: charge })))
    }

    pub fn eval(&mut self, expr: &Expr) -> Result<Value> {
        self.meter.spend(1)?;
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(b) => Ok(Value::Bool(*b)),
            Expr::Int(i) => Ok(Value::Int(*i)),
            Expr::Float(f) => Ok(Value::Float(*f)),
            Expr::Str(text) => self.text(text, Origin::Template),
            Expr::Name(name) => Ok(self.lookup(name)),
            other => self.deeper(|m| m.eval_compound(other)),
        }
    }

    #[inline(never)]
    fn eval_compound(&mut self, expr: &Expr) -> Result<Value> {
        match expr {
            Expr::List(items) | Expr::Tuple(items) => {
                let list = List::new(&self.meter, matches!(expr, Expr::Tuple(_)))?;
                for item in items {
                    let value = self.eval(item)?;
                    list.push(value)?;
                }
                Ok(Value::List(Rc::new(list)))
            }
            Expr::Dict(items) => {
                let dict = Dict::new(&self.meter)?;
                for (key, value) in items {
                    let key = self.eval(key)?;
                    dict.insert(key, self.eval(value)?)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Expr::If { condition, then, otherwise } => {
                if self.eval(condition)?.is_true() {
                    self.eval(then)
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise)
                } else {
                    Ok(Value::undefined("an `if` expression without `else` gave no value"))
                }
            }
            Expr::Or(all) | Expr::And(all) => {
                let stop_at = matches!(expr, Expr::Or(_));
                let (last, first) = all.split_last().expect("has two or more");
                for one in first {
                    let value = self.eval(one)?;
                    if value.is_true() == stop_at {
                        return Ok(value);
                    }
                }
                self.eval(last)
            }
            Expr::Not(operand) => Ok(Value::Bool(!self.eval(operand)?.is_true())),
            Expr::Negate(operand) | Expr::Plus(operand) => {
                let negate = matches!(expr, Expr::Negate(_));
                let value = self.eval(operand)?;
                match (value.defined()?, value.as_int()) {
                    (_, Some(i)) if !negate => Ok(Value::Int(i)),
                    (_, Some(i)) => i.checked_neg().map(Value::Int).ok_or_else(too_large),
                    (Value::Float(f), _) => Ok(Value::Float(if negate { -f } else { *f })),
                    (other, _) => {
                        let sign = if negate { '-' } else { '+' };
                        Err(Fault::message(format!("bad operand type for unary {sign}: '{}'", other.type_name())))
                    }
                }
            }
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first)?;
                for (op, right) in rest {
                    let right = self.eval(right)?;
                    if !self.compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::Arithmetic(first, rest) => {
                let mut left = self.eval(first)?;
                // Powers are taken from the left as well, as Jinja does.
                for (op, right) in rest {
                    let right = self.eval(right)?;
                    left = self.arithmetic(*op, &left, &right)?;
                }
                Ok(left)
            }
            Expr::Concat(all) => {
                let mut out = Text::new(&self.meter)?;
                for one in all {
                    let value = self.eval(one)?;
                    python::print(&mut out, &value)?;
                }
                Ok(Value::Str(Rc::new(out)))
            }
            Expr::Postfix(base, chain) => self.chain(base, chain),
            simple => self.eval(simple),
        }
    }

    fn chain(&mut self, base: &Expr, chain: &[Postfix]) -> Result<Value> {
        let base = self.eval(base)?;
        chain.iter().try_fold(base, |value, postfix| self.postfix(value, postfix))
    }

    #[inline(never)]
    fn postfix(&mut self, value: Value, postfix: &Postfix) -> Result<Value> {
        self.meter.spend(1)?;
        match postfix {
            Postfix::Attribute(name) => self.attribute(&value, name),
            Postfix::Item(index) => {
                let index = self.eval(index)?;
                self.item(&value, &index)
            }
            Postfix::Slice(start, stop, step) => {
                let mut part = |e: &Option<Expr>| -> Result<Option<i128>> {
                    let Some(e) = e else { return Ok(None) };
                    let value = self.eval(e)?;
                    match value.defined()? {
                        Value::None => Ok(None),
                        other => other
                            .as_int()
                            .map(Some)
                            .ok_or_else(|| Fault::message("slice indices must be whole numbers")),
                    }
                };
                let (start, stop, step) = (part(start)?, part(stop)?, part(step)?);
                self.slice(&value, start, stop, step.unwrap_or(1))
            }
            Postfix::Call(arguments) => {
                let args = self.args(arguments)?;
                self.call(&value, args)
            }
            Postfix::Filter(name, arguments) => {
                let args = self.args(arguments)?;
                builtins::filter(self, name, value, args)
            }
            Postfix::Test { name, arguments, negated } => {
                let args = self.args(arguments)?;
                Ok(Value::Bool(builtins::test(self, name, &value, args)? != *negated))
            }
        }
    }

    fn args(&mut self, arguments: &Arguments) -> Result<Args> {
        let mut args = Args::default();
        for one in &arguments.positional {
            let value = self.eval(one)?;
            args.positional.push(value);
        }
        for (name, one) in &arguments.keyword {
            let value = self.eval(one)?;
            args.keyword.push((name.clone(), value));
        }
        Ok(args)
    }

    pub fn compare(&mut self, op: Compare, a: &Value, b: &Value) -> Result<bool> {
        use std::cmp::Ordering::{Greater, Less};
        Ok(match op {
            Compare::Eq => python::equal(a, b)?,
            Compare::Ne => !python::equal(a, b)?,
            Compare::Lt => python::compare(a, b, 1)? == Less,
            Compare::Le => python::compare(a, b, 1)? != Greater,
            Compare::Gt => python::compare(a, b, 1)? == Greater,
            Compare::Ge => python::compare(a, b, 1)? != Less,
            Compare::In => self.contains(b, a)?,
            Compare::NotIn => !self.contains(b, a)?,
        })
    }

    pub fn contains(&mut self, container: &Value, item: &Value) -> Result<bool> {
        match container {
            Value::Undefined(_) => Ok(false),
            Value::Str(text) => match item {
                Value::Str(part) => {
                    self.meter.spend_bytes(text.as_str().len() + part.as_str().len())?;
                    Ok(text.as_str().contains(part.as_str()))
                }
                other => Err(Fault::message(format!(
                    "'in <string>' requires string as left operand, not {}",
                    other.type_name()
                ))),
            },
            Value::List(list) => {
                let mut i = 0;
                while let Some(one) = list.get(i) {
                    self.meter.spend(1)?;
                    if python::equal(&one, item)? {
                        return Ok(true);
                    }
                    i += 1;
                }
                Ok(false)
            }
            Value::Dict(dict) => Ok(dict.get(item)?.is_some()),
            other => Err(Fault::message(format!("argument of type '{}' is not iterable", other.type_name()))),
        }
    }

    #[inline(never)]
    fn arithmetic(&mut self, op: Op, a: &Value, b: &Value) -> Result<Value> {
        let sign = match op {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
            Op::FloorDiv => "//",
            Op::Rem => "%",
            Op::Pow => "**",
        };
        match (op, a.defined()?, b.defined()?) {
            (Op::Add, Value::Str(a), Value::Str(b)) => {
                let mut out = Text::new(&self.meter)?;
                out.markup = a.markup || b.markup;
                for part in [a, b] {
                    if out.markup && !part.markup {
                        out.push_all(&builtins::escape(part)?)?
                    } else {
                        out.push_all(part)?
                    }
                }
                return Ok(Value::Str(Rc::new(out)));
            }
            (Op::Add, Value::List(a), Value::List(b)) if a.tuple == b.tuple => {
                let out = List::new(&self.meter, a.tuple)?;
                for value in a.items()?.items.iter().chain(&b.items()?.items) {
                    out.push(value.clone())?;
                }
                return Ok(Value::List(Rc::new(out)));
            }
            (Op::Mul, Value::Str(text), other) | (Op::Mul, other, Value::Str(text)) if other.as_int().is_some() => {
                let mut out = Text::new(&self.meter)?;
                for _ in 0..other.as_int().unwrap_or(0) {
                    self.meter.spend(1)?;
                    out.push_all(text)?;
                    if text.as_str().is_empty() {
                        break;
                    }
                }
                return Ok(Value::Str(Rc::new(out)));
            }
            (Op::Mul, Value::List(list), other) | (Op::Mul, other, Value::List(list)) if other.as_int().is_some() => {
                let out = List::new(&self.meter, list.tuple)?;
                let items = list.items()?;
                for _ in 0..if items.items.is_empty() { 0 } else { other.as_int().unwrap_or(0) } {
                    items.items.iter().try_for_each(|v| out.push(v.clone()))?;
                }
                return Ok(Value::List(Rc::new(out)));
            }
            (Op::Rem, Value::Str(format), other) => {
                let values = match other {
                    Value::List(list) if list.tuple => list.items()?,
                    _ => {
                        let one = List::new(&self.meter, true)?;
                        one.push(other.clone())?;
                        one.items()?
                    }
                };
                return builtins::printf(self, format, &values.items);
            }
            _ => {}
        }
        let wrong = || {
            let (a, b) = (a.type_name(), b.type_name());
            Fault::message(format!("unsupported operand type(s) for {sign}: '{a}' and '{b}'"))
        };
        if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
            let zero = || Fault::message("division by zero");
            return match op {
                Op::Add => a.checked_add(b).map(Value::Int).ok_or_else(too_large),
                Op::Sub => a.checked_sub(b).map(Value::Int).ok_or_else(too_large),
                Op::Mul => a.checked_mul(b).map(Value::Int).ok_or_else(too_large),
                Op::Div if b == 0 => Err(zero()),
                Op::Div => Ok(Value::Float(a as f64 / b as f64)),
                Op::FloorDiv | Op::Rem if b == 0 => Err(zero()),
                Op::FloorDiv => floor_div(a, b).map(|(q, _)| Value::Int(q)).ok_or_else(too_large),
                Op::Rem => floor_div(a, b).map(|(_, r)| Value::Int(r)).ok_or_else(too_large),
                Op::Pow if b < 0 => Ok(Value::Float(libm::pow(a as f64, b as f64))),
                Op::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)).map(Value::Int).ok_or_else(too_large),
            };
        }
        let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { return Err(wrong()) };
        if matches!(op, Op::Div | Op::FloorDiv | Op::Rem) && y == 0.0 {
            return Err(Fault::message("float division by zero"));
        }
        // The remainder has the sign of the divisor.
        let rem = || {
            let r = x % y;
            if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
        };
        Ok(Value::Float(match op {
            Op::Add => x + y,
            Op::Sub => x - y,
            Op::Mul => x * y,
            Op::Div => x / y,
            Op::FloorDiv => ((x - rem()) / y).round(),
            Op::Rem => rem(),
            Op::Pow => libm::pow(x, y),
        }))
    }

    /// `value.name`: an attribute or method first, then an item, as Jinja does.
    pub fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        value.defined()?;
        if name.starts_with("__") {
            return Ok(Value::undefined(format!("access to attribute '{name}' is unsafe")));
        }
        if builtins::has_method(value, name) {
            return Ok(Value::Method(Rc::new((value.clone(), name.to_owned()))));
        }
        let found = match value {
            Value::Dict(dict) | Value::Namespace(dict) => dict.get_str(name)?,
            Value::Loop(one) => loop_attribute(one, name),
            Value::Macro(one) if name == "name" => Some(self.text(&one.definition.name, Origin::Template)?),
            _ => None,
        };
        Ok(found.unwrap_or_else(|| no_attribute(value, name)))
    }

    /// `value[index]`: an item first, then an attribute.
    pub fn item(&mut self, value: &Value, index: &Value) -> Result<Value> {
        let found = match (value.defined()?, index) {
            (Value::Dict(dict), key) => dict.get(key)?,
            (Value::List(list), index) if index.as_int().is_some() => {
                position(index.as_int().unwrap_or(0), list.len()).and_then(|i| list.get(i))
            }
            (Value::Str(text), index) if index.as_int().is_some() => {
                self.meter.spend_bytes(text.as_str().len())?;
                let at = position(index.as_int().unwrap_or(0), text.as_str().chars().count());
                match at.and_then(|i| text.char_range(i)) {
                    Some(range) => Some(Value::Str(Rc::new(text.slice(range)?))),
                    None => None,
                }
            }
            _ => None,
        };
        match (found, index) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name))
                if !matches!(value, Value::Dict(_)) || builtins::has_method(value, name.as_str()) =>
            {
                let name = name.clone();
                self.attribute(value, name.as_str())
            }
            (None, Value::Str(name)) => Ok(no_attribute(value, name.as_str())),
            (None, _) => Ok(Value::undefined(format!("'{} object' has no such element", value.type_name()))),
        }
    }

    fn slice(&mut self, value: &Value, start: Option<i128>, stop: Option<i128>, step: i128) -> Result<Value> {
        if step == 0 {
            return Err(Fault::message("slice step cannot be zero"));
        }
        let len = match value.defined()? {
            Value::List(list) => list.len(),
            Value::Str(text) => {
                self.meter.spend_bytes(text.as_str().len())?;
                text.as_str().chars().count()
            }
            _ => return Ok(Value::undefined(format!("'{} object' cannot be sliced", value.type_name()))),
        };
        let n = len as i128;
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let bound = |i: Option<i128>, default: i128| {
            i.map_or(default, |i| if i < 0 { i.saturating_add(n).max(low) } else { i.min(high) })
        };
        let (first, end) =
            if step > 0 { (bound(start, 0), bound(stop, n)) } else { (bound(start, n - 1), bound(stop, -1)) };
        let mut charge = Charge::new(&self.meter);
        charge.grow(16 * (end - first).unsigned_abs().div_ceil(step.unsigned_abs()) as usize)?;
        if matches!(value, Value::Str(_)) && step != 1 {
            charge.grow(16 * len)?;
        }
        let mut at = vec![];
        let mut i = first;
        while (step > 0 && i < end) || (step < 0 && i > end) {
            at.push(i as usize);
            i = i.saturating_add(step);
        }
        self.meter.spend(at.len())?;
        match value {
            Value::List(list) => {
                let out = List::new(&self.meter, list.tuple)?;
                at.into_iter().filter_map(|i| list.get(i)).try_for_each(|v| out.push(v))?;
                Ok(Value::List(Rc::new(out)))
            }
            Value::Str(text) if step == 1 => {
                let byte = |i: usize| text.as_str().char_indices().nth(i).map_or(text.as_str().len(), |(b, _)| b);
                let range = at.first().map_or(0..0, |first| byte(*first)..byte(first + at.len()));
                Ok(Value::Str(Rc::new(text.slice(range)?)))
            }
            Value::Str(text) => {
                let edges: Vec<usize> =
                    text.as_str().char_indices().map(|(b, _)| b).chain([text.as_str().len()]).collect();
                let mut out = Text::new(&self.meter)?;
                at.into_iter().try_for_each(|i| out.push_range(text, edges[i]..edges[i + 1]))?;
                Ok(Value::Str(Rc::new(out)))
            }
            _ => unreachable!("has a length"),
        }
    }

    pub fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        match callee.defined()? {
            Value::Macro(one) => self.deeper(|m| m.call_macro(one, args)),
            Value::Method(method) => {
                let (value, name) = &**method;
                if let Value::Loop(one) = value {
                    let n = args.positional.len();
                    let at = if n == 0 { None } else { args.positional.get(one.index0 % n) };
                    return at.cloned().ok_or_else(|| Fault::message("no items for cycling given"));
                }
                builtins::method(self, value, name, args)
            }
            Value::Function(function) => self.call_function(*function, args),
            other => Err(Fault::message(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    #[inline(never)]
    fn call_macro(&mut self, one: &Rc<MacroValue>, mut args: Args) -> Result<Value> {
        let definition = one.definition.clone();
        let n = definition.parameters.len();
        let mut frame = Frame { running: Some(one.clone()), ..Frame::default() };
        let caller = args.keyword.iter().position(|(name, _)| name == "caller" && !one.caller);
        let caller = caller.map(|i| args.keyword.remove(i).1);
        frame.variables.insert("caller".into(), caller.unwrap_or_else(|| Value::undefined("No caller defined")));
        let rest = args.positional.split_off(n.min(args.positional.len()));
        if !definition.takes_varargs && !rest.is_empty() {
            let name = &definition.name;
            return Err(Fault::message(format!("macro '{name}' takes not more than {n} argument(s)")));
        }
        frame.variables.insert("varargs".into(), Value::tuple(&self.meter, rest)?);
        let mut given: Vec<Option<Value>> = args.positional.into_iter().map(Some).collect();
        given.resize(n, None);
        let kwargs = Dict::new(&self.meter)?;
        for (name, value) in args.keyword {
            match definition.parameters.iter().position(|(p, _)| *p == name) {
                Some(i) if given[i].is_none() => given[i] = Some(value),
                None if definition.takes_kwargs => kwargs.insert(self.text(&name, Origin::Template)?, value)?,
                _ => {
                    let of = &definition.name;
                    return Err(Fault::message(format!(
                        "macro '{of}' takes no keyword argument '{name}', or has it already"
                    )));
                }
            }
        }
        frame.variables.insert("kwargs".into(), Value::Dict(Rc::new(kwargs)));
        let text = self.in_frame(frame, |m| {
            for ((name, default), given) in definition.parameters.iter().zip(given) {
                let value = match (given, default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => m.eval(default)?,
                    (None, None) => Value::undefined(format!("parameter '{name}' was not provided")),
                };
                m.set(name, value);
            }
            m.capture(|m| m.nodes(&definition.body).map(drop))
        })?;
        Ok(Value::Str(Rc::new(text)))
    }

    fn call_function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::Range => {
                let numbers: Option<Vec<i128>> = args.positional.iter().map(Value::as_int).collect();
                let (start, stop, step) = match numbers.as_deref() {
                    Some([stop]) => (0, *stop, 1),
                    Some([start, stop]) => (*start, *stop, 1),
                    Some([start, stop, step]) if *step != 0 => (*start, *stop, *step),
                    _ => return Err(Fault::message("`range` takes one to three whole numbers, the last not 0")),
                };
                let span = stop.checked_sub(start).ok_or_else(too_large)?;
                let n = if (span > 0) == (step > 0) { span.unsigned_abs().div_ceil(step.unsigned_abs()) } else { 0 };
                if n > MAX_RANGE as u128 {
                    return Err(Fault::message(format!(
                        "Range too big. The sandbox blocks ranges larger than {MAX_RANGE}."
                    )));
                }
                self.list((0..n as i128).map(|i| Value::Int(start + i * step)))
            }
            Function::Dict | Function::Namespace => {
                let dict = Dict::new(&self.meter)?;
                if let Some(Value::Dict(from)) = args.positional.first() {
                    let mut i = 0;
                    while let Some((key, value)) = from.entry(i) {
                        dict.insert(key, value)?;
                        i += 1;
                    }
                } else if let Some(pairs) = args.positional.first() {
                    for pair in &builtins::iterate(self, pairs)?.items {
                        match &builtins::iterate(self, pair)?.items[..] {
                            [key, value] => dict.insert(key.clone(), value.clone())?,
                            _ => return Err(Fault::message("a dictionary is made of pairs")),
                        }
                    }
                }
                for (name, value) in args.keyword {
                    if function == Function::Namespace && name.starts_with('_') {
                        return Err(Fault::message(format!(
                            "a namespace takes no attribute that begins with `_`: {name}"
                        )));
                    }
                    dict.insert(self.text(&name, Origin::Template)?, value)?;
                }
                let dict = Rc::new(dict);
                Ok(if function == Function::Dict { Value::Dict(dict) } else { Value::Namespace(dict) })
            }
            Function::RaiseException => {
                let what =
                    args.positional.first().ok_or_else(|| Fault::message("`raise_exception` takes a message"))?;
                let what = python::to_text(&self.meter, what)?;
                Err(Fault::Refused(what.as_str().to_owned()))
            }
            Function::StrftimeNow => {
                let format = args.positional.first().and_then(Value::as_text);
                let format = format.ok_or_else(|| Fault::message("`strftime_now` takes a format"))?.clone();
                self.meter.spend(16 * format.as_str().len())?;
                self.text(&super::strftime(self.now, format.as_str()), Origin::Template)
            }
        }
    }
}

fn too_large() -> Fault {
    Fault::message("a whole number beyond 127 bits")
}

fn no_attribute(value: &Value, name: &str) -> Value {
    let name: String = name.chars().take(100).collect();
    Value::undefined(format!("'{} object' has no attribute '{name}'", value.type_name()))
}

/// Quotient and remainder, rounded down as Python does.
fn floor_div(a: i128, b: i128) -> Option<(i128, i128)> {
    let (q, r) = (a.checked_div(b)?, a.checked_rem(b)?);
    Some(if r != 0 && (r < 0) != (b < 0) { (q - 1, r + b) } else { (q, r) })
}

/// A Python index, negative ones from the end.
pub(super) fn position(i: i128, len: usize) -> Option<usize> {
    let i = if i < 0 { i.checked_add(len as i128)? } else { i };
    usize::try_from(i).ok().filter(|i| *i < len)
}

fn loop_attribute(one: &Loop, name: &str) -> Option<Value> {
    let Items { items, .. } = &*one.items;
    let (i, n) = (one.index0, items.len());
    let neighbour = |i: Option<usize>| {
        let value = i.and_then(|i| items.get(i)).cloned();
        value.unwrap_or_else(|| Value::undefined("there is no neighbour of this item"))
    };
    Some(match name {
        "index" => Value::Int(i as i128 + 1),
        "index0" => Value::Int(i as i128),
        "revindex" => Value::Int((n - i) as i128),
        "revindex0" => Value::Int((n - i) as i128 - 1),
        "first" => Value::Bool(i == 0),
        "last" => Value::Bool(i + 1 == n),
        "length" => Value::Int(n as i128),
        "depth" => Value::Int(1),
        "depth0" => Value::Int(0),
        "previtem" => neighbour(i.checked_sub(1)),
        "nextitem" => neighbour(i.checked_add(1)),
        _ => return None,
    })
}

/// Bytes of `text` without the given characters at its ends; white space if there are none given.
pub(super) fn strip_range(text: &str, chars: Option<&str>, start: bool, end: bool) -> std::ops::Range<usize> {
    let strip = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let from = if start { text.len() - text.trim_start_matches(strip).len() } else { 0 };
    let to = if end { text.trim_end_matches(strip).len() } else { text.len() };
    from..to.max(from)
}
