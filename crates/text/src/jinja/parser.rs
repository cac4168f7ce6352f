//! Tokens to a tree. Chains (`a + b + c`, `x.y[0]|trim`) are lists, so that the tree is as deep as its brackets and blocks are
//! nested, which is bounded.

use std::sync::Arc;

use super::{
    SyntaxError,
    builtins::{is_filter, is_test},
    lexer::{Kind, Token, tokenize},
};

/// Brackets, signs and blocks within each other.
const MAX_NESTING: usize = 48;

#[derive(Debug)]
pub(super) struct Node {
    pub line: usize,
    pub kind: NodeKind,
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Data(String),
    Output(Expr),
    If {
        branches: Vec<(Expr, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    For {
        target: Target,
        iter: Expr,
        filter: Option<Expr>,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Set(Target, Expr),
    SetBlock {
        name: String,
        filters: Vec<Postfix>,
        body: Vec<Node>,
    },
    Macro(Arc<Macro>),
    /// The macro is the caller.
    Call {
        caller: Arc<Macro>,
        call: Expr,
    },
    Filter {
        filters: Vec<Postfix>,
        body: Vec<Node>,
    },
    With(Vec<(Target, Expr)>, Vec<Node>),
    Scope(Vec<Node>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub name: String,
    pub parameters: Vec<(String, Option<Expr>)>,
    pub body: Vec<Node>,
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    Attribute(String, String),
    Tuple(Vec<Target>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `then if condition else otherwise`
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Plus(Box<Expr>),
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    Arithmetic(Box<Expr>, Vec<(Op, Expr)>),
    Concat(Vec<Expr>),
    Postfix(Box<Expr>, Vec<Postfix>),
}

#[derive(Debug)]
pub(super) enum Postfix {
    Attribute(String),
    Item(Expr),
    Slice(Option<Expr>, Option<Expr>, Option<Expr>),
    Call(Arguments),
    Filter(String, Arguments),
    Test { name: String, arguments: Arguments, negated: bool },
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    pub keyword: Vec<(String, Expr)>,
}

pub(super) fn parse(source: &str) -> Result<Vec<Node>, SyntaxError> {
    let tokens = tokenize(source)?;
    let mut parser = Parser { tokens, at: 0, nesting: 0, in_loop: 0, varargs: false, kwargs: false };
    let nodes = parser.nodes(&[])?;
    match parser.peek() {
        None => Ok(nodes),
        Some(_) => parser.error("an end of a block that was not begun"),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
    in_loop: usize,
    /// The macro being parsed names `varargs`, `kwargs`.
    varargs: bool,
    kwargs: bool,
}

type Parsed<T> = Result<T, SyntaxError>;

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    fn error<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(SyntaxError { line: self.line(), what: what.into() })
    }

    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get_mut(self.at)?;
        self.at += 1;
        // A token is taken once.
        Some(std::mem::replace(&mut token.kind, Kind::BlockEnd))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(o)) if *o == op)
    }

    fn take_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.take_op(op) { Ok(()) } else { self.error(format!("expected `{op}`")) }
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(n)) if n == name)
    }

    fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self, of: &str) -> Parsed<String> {
        match self.peek() {
            Some(Kind::Name(_)) => match self.next() {
                Some(Kind::Name(name)) => Ok(name),
                _ => unreachable!("peeked"),
            },
            _ => self.error(format!("expected the name of {of}")),
        }
    }

    fn block_end(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(Kind::BlockEnd) => {
                self.at += 1;
                Ok(())
            }
            _ => self.error("expected `%}`"),
        }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nesting == MAX_NESTING {
            return self.error(format!("more than {MAX_NESTING} brackets or blocks within each other"));
        }
        self.nesting += 1;
        let result = parse(self);
        self.nesting -= 1;
        result
    }

    /// Nodes up to a block tag whose name is one of `ends`, which stays unread after its `{%`.
    fn nodes(&mut self, ends: &[&str]) -> Parsed<Vec<Node>> {
        let mut nodes = vec![];
        loop {
            let line = self.line();
            let kind = match self.peek() {
                None if ends.is_empty() => return Ok(nodes),
                None => return self.error(format!("expected `{{% {} %}}` before the end", ends.join("` or `"))),
                Some(Kind::Data(_)) => match self.next() {
                    Some(Kind::Data(data)) => NodeKind::Data(data),
                    _ => unreachable!("peeked"),
                },
                Some(Kind::VariableBegin) => {
                    self.at += 1;
                    let expr = self.tuple(true, &[])?;
                    if self.peek() != Some(&Kind::VariableEnd) {
                        return self.error("expected `}}`");
                    }
                    self.at += 1;
                    NodeKind::Output(expr)
                }
                Some(Kind::BlockBegin) => {
                    if let Some(Kind::Name(name)) = self.tokens.get(self.at + 1).map(|t| &t.kind)
                        && ends.contains(&name.as_str())
                    {
                        self.at += 1;
                        return Ok(nodes);
                    }
                    if ends.is_empty()
                        && matches!(self.tokens.get(self.at + 1).map(|t| &t.kind), Some(Kind::Name(n)) if n.starts_with("end") || n == "else" || n == "elif")
                    {
                        return Ok(nodes);
                    }
                    self.at += 1;
                    self.nested(Self::statement)?
                }
                Some(_) => return self.error("unexpected token"),
            };
            nodes.push(Node { line, kind });
        }
    }

    /// Nodes up to the end tag of that name, which is taken.
    fn body(&mut self, end: &str) -> Parsed<Vec<Node>> {
        self.block_end()?;
        let nodes = self.nodes(&[end])?;
        self.at += 1;
        Ok(nodes)
    }

    fn statement(&mut self) -> Parsed<NodeKind> {
        let name = self.name("a block")?;
        let kind = match name.as_str() {
            "if" => return self.if_(),
            "for" => return self.for_(),
            "set" => return self.set(),
            "macro" => {
                let name = self.name("a macro")?;
                NodeKind::Macro(self.macro_(name, "endmacro")?)
            }
            "call" => {
                // The parameters come before what is called, whose parsing ends at the tag's end.
                let parameters = if self.is_op("(") { self.parameters()? } else { vec![] };
                let call = self.expression()?;
                if !matches!(&call, Expr::Postfix(_, chain) if matches!(chain.last(), Some(Postfix::Call(_)))) {
                    return self.error("expected a call of a macro");
                }
                let caller = self.macro_body("caller".into(), parameters, "endcall")?;
                NodeKind::Call { caller, call }
            }
            "filter" => {
                let filters = self.filters(true)?;
                NodeKind::Filter { filters, body: self.body("endfilter")? }
            }
            "with" => {
                let mut assignments = vec![];
                while self.peek() != Some(&Kind::BlockEnd) {
                    if !assignments.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target(false)?;
                    self.expect_op("=")?;
                    assignments.push((target, self.expression()?));
                }
                NodeKind::With(assignments, self.body("endwith")?)
            }
            "generation" => NodeKind::Scope(self.body("endgeneration")?),
            "break" | "continue" if self.in_loop > 0 => {
                if name == "break" {
                    NodeKind::Break
                } else {
                    NodeKind::Continue
                }
            }
            "break" | "continue" => return self.error(format!("`{name}` outside of a loop")),
            "include" | "import" | "from" | "extends" | "block" => {
                return self.error(format!("`{name}`: a chat template stands alone, there are no other templates"));
            }
            _ => return self.error(format!("unknown block `{name}`")),
        };
        self.block_end()?;
        Ok(kind)
    }

    fn if_(&mut self) -> Parsed<NodeKind> {
        let mut branches = vec![];
        let mut otherwise = vec![];
        loop {
            let condition = self.tuple(false, &[])?;
            self.block_end()?;
            branches.push((condition, self.nodes(&["elif", "else", "endif"])?));
            if self.take_name("elif") {
                continue;
            }
            if self.take_name("else") {
                self.block_end()?;
                otherwise = self.nodes(&["endif"])?;
            }
            self.at += 1;
            self.block_end()?;
            return Ok(NodeKind::If { branches, otherwise });
        }
    }

    fn for_(&mut self) -> Parsed<NodeKind> {
        let target = self.target(false)?;
        if !self.take_name("in") {
            return self.error("expected `in`");
        }
        let iter = self.tuple(false, &["recursive"])?;
        let filter = if self.take_name("if") { Some(self.expression()?) } else { None };
        if self.is_name("recursive") {
            return self.error("`recursive` loops are not supported; a macro can call itself");
        }
        self.block_end()?;
        self.in_loop += 1;
        let body = self.nodes(&["else", "endfor"]);
        self.in_loop -= 1;
        let body = body?;
        let mut otherwise = vec![];
        if self.take_name("else") {
            self.block_end()?;
            otherwise = self.nodes(&["endfor"])?;
        }
        self.at += 1;
        self.block_end()?;
        Ok(NodeKind::For { target, iter, filter, body, otherwise })
    }

    fn set(&mut self) -> Parsed<NodeKind> {
        let target = self.target(true)?;
        if self.take_op("=") {
            let value = self.tuple(true, &[])?;
            self.block_end()?;
            return Ok(NodeKind::Set(target, value));
        }
        let Target::Name(name) = target else { return self.error("expected `=`") };
        let filters = self.filters(false)?;
        let body = self.body("endset")?;
        self.block_end()?;
        Ok(NodeKind::SetBlock { name, filters, body })
    }

    /// `name|name(...)`, or each with `|` before it.
    fn filters(&mut self, first_bare: bool) -> Parsed<Vec<Postfix>> {
        let mut filters = vec![];
        while (first_bare && filters.is_empty()) || self.take_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn filter(&mut self) -> Parsed<Postfix> {
        let name = self.name("a filter")?;
        if !is_filter(&name) {
            return self.error(format!("no filter named `{name}`"));
        }
        let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
        Ok(Postfix::Filter(name, arguments))
    }

    fn macro_(&mut self, name: String, end: &str) -> Parsed<Arc<Macro>> {
        let parameters = self.parameters()?;
        self.macro_body(name, parameters, end)
    }

    fn parameters(&mut self) -> Parsed<Vec<(String, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut parameters: Vec<(String, Option<Expr>)> = vec![];
        while !self.take_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name("a parameter")?;
            let default = if self.take_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, d)| d.is_some()) {
                return self.error("a parameter without a default after one with a default");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn macro_body(&mut self, name: String, parameters: Vec<(String, Option<Expr>)>, end: &str) -> Parsed<Arc<Macro>> {
        let outer = (self.varargs, self.kwargs, self.in_loop);
        (self.varargs, self.kwargs, self.in_loop) = (false, false, 0);
        let body = self.body(end);
        let (takes_varargs, takes_kwargs) = (self.varargs, self.kwargs);
        (self.varargs, self.kwargs, self.in_loop) = outer;
        Ok(Arc::new(Macro { name, parameters, body: body?, takes_varargs, takes_kwargs }))
    }

    fn target(&mut self, attribute: bool) -> Parsed<Target> {
        let mut targets = vec![];
        loop {
            let one = if self.take_op("(") {
                let inner = self.nested(|p| p.target(false))?;
                self.expect_op(")")?;
                inner
            } else {
                let name = self.name("a variable")?;
                if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
                    return self.error(format!("`{name}` cannot be assigned to"));
                }
                if attribute && self.take_op(".") {
                    return Ok(Target::Attribute(name, self.name("an attribute")?));
                }
                Target::Name(name)
            };
            targets.push(one);
            if !self.take_op(",") {
                break;
            }
            if self.is_op("=") || self.is_name("in") {
                return Ok(Target::Tuple(targets));
            }
        }
        Ok(if targets.len() == 1 { targets.remove(0) } else { Target::Tuple(targets) })
    }

    /// One expression, or several with commas.
    fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Parsed<Expr> {
        let mut items = vec![];
        let mut comma = false;
        loop {
            let end = match self.peek() {
                None | Some(Kind::BlockEnd | Kind::VariableEnd) | Some(Kind::Op(")")) => true,
                Some(Kind::Name(n)) => ends.contains(&n.as_str()),
                _ => false,
            };
            if end {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.nested(Self::or)? });
            comma = self.take_op(",");
            if !comma {
                break;
            }
        }
        match items.len() {
            0 => self.error("expected an expression"),
            1 if !comma => Ok(items.remove(0)),
            _ => Ok(Expr::Tuple(items)),
        }
    }

    fn expression(&mut self) -> Parsed<Expr> {
        self.nested(|p| {
            let then = p.or()?;
            if !p.take_name("if") {
                return Ok(then);
            }
            // `a if b else c if d else e` nests to the right.
            let condition = Box::new(p.or()?);
            let otherwise = if p.take_name("else") { Some(Box::new(p.expression()?)) } else { None };
            Ok(Expr::If { condition, then: Box::new(then), otherwise })
        })
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut all = vec![self.and()?];
        while self.take_name("or") {
            all.push(self.and()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Or(all) })
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut all = vec![self.not()?];
        while self.take_name("and") {
            all.push(self.not()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::And(all) })
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.take_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        let first = self.sum()?;
        let mut rest = vec![];
        loop {
            let op = match self.peek() {
                Some(Kind::Op("==")) => Compare::Eq,
                Some(Kind::Op("!=")) => Compare::Ne,
                Some(Kind::Op("<")) => Compare::Lt,
                Some(Kind::Op("<=")) => Compare::Le,
                Some(Kind::Op(">")) => Compare::Gt,
                Some(Kind::Op(">=")) => Compare::Ge,
                Some(Kind::Name(n)) if n == "in" => Compare::In,
                Some(Kind::Name(n))
                    if n == "not"
                        && matches!(self.tokens.get(self.at + 1).map(|t| &t.kind), Some(Kind::Name(n)) if n == "in") =>
                {
                    self.at += 1;
                    Compare::NotIn
                }
                _ => break,
            };
            self.at += 1;
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn chain(&mut self, ops: &[(&str, Op)], next: fn(&mut Self) -> Parsed<Expr>) -> Parsed<Expr> {
        let first = next(self)?;
        let mut rest = vec![];
        while let Some((_, op)) = ops.iter().find(|(text, _)| self.is_op(text)) {
            self.at += 1;
            rest.push((*op, next(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Arithmetic(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.chain(&[("+", Op::Add), ("-", Op::Sub)], Self::concat)
    }

    /// `~` binds stronger than `+`.
    fn concat(&mut self) -> Parsed<Expr> {
        let mut all = vec![self.product()?];
        while self.take_op("~") {
            all.push(self.product()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Concat(all) })
    }

    fn product(&mut self) -> Parsed<Expr> {
        let ops = [("*", Op::Mul), ("/", Op::Div), ("//", Op::FloorDiv), ("%", Op::Rem)];
        self.chain(&ops, |p| p.chain(&[("**", Op::Pow)], |p| p.unary(true)))
    }

    fn unary(&mut self, filters: bool) -> Parsed<Expr> {
        let operand = if self.take_op("-") {
            Expr::Negate(Box::new(self.nested(|p| p.unary(false))?))
        } else if self.take_op("+") {
            Expr::Plus(Box::new(self.nested(|p| p.unary(false))?))
        } else {
            self.primary()?
        };
        let mut chain = vec![];
        while self.postfix(&mut chain)? {}
        if filters {
            loop {
                if self.take_op("|") {
                    chain.push(self.filter()?);
                } else if self.take_name("is") {
                    chain.push(self.test()?);
                } else if self.is_op("(") {
                    chain.push(Postfix::Call(self.arguments()?));
                } else {
                    break;
                }
            }
        }
        Ok(if chain.is_empty() { operand } else { Expr::Postfix(Box::new(operand), chain) })
    }

    /// Takes one of `.name`, `[...]`, `(...)`.
    fn postfix(&mut self, chain: &mut Vec<Postfix>) -> Parsed<bool> {
        if self.take_op(".") {
            if let Some(Kind::Int(i)) = self.peek() {
                let index = Expr::Int(*i);
                self.at += 1;
                chain.push(Postfix::Item(index));
            } else {
                chain.push(Postfix::Attribute(self.name("an attribute")?));
            }
        } else if self.take_op("[") {
            let item = self.subscript()?;
            self.expect_op("]")?;
            chain.push(item);
        } else if self.is_op("(") {
            chain.push(Postfix::Call(self.arguments()?));
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn subscript(&mut self) -> Parsed<Postfix> {
        let mut parts: [Option<Expr>; 3] = [None, None, None];
        let mut colons = 0;
        loop {
            if self.take_op(":") {
                colons += 1;
                if colons > 2 {
                    return self.error("a slice has at most two `:`");
                }
            } else if self.is_op("]") {
                break;
            } else if parts[colons].is_none() {
                parts[colons] = Some(self.expression()?);
            } else {
                return self.error("expected `]`");
            }
        }
        let [start, stop, step] = parts;
        match (colons, start) {
            (0, Some(item)) => Ok(Postfix::Item(item)),
            (0, None) => self.error("expected an index"),
            (_, start) => Ok(Postfix::Slice(start, stop, step)),
        }
    }

    fn test(&mut self) -> Parsed<Postfix> {
        let negated = self.take_name("not");
        let name = self.name("a test")?;
        if !is_test(&name) {
            return self.error(format!("no test named `{name}`"));
        }
        let mut arguments = Arguments::default();
        if self.is_op("(") {
            arguments = self.arguments()?;
        } else {
            let operand = match self.peek() {
                Some(Kind::Name(n)) => !matches!(n.as_str(), "else" | "or" | "and" | "is" | "if" | "in" | "not"),
                Some(Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{")) => true,
                _ => false,
            };
            if operand {
                let operand = self.primary()?;
                let mut chain = vec![];
                while self.postfix(&mut chain)? {}
                let operand = if chain.is_empty() { operand } else { Expr::Postfix(Box::new(operand), chain) };
                arguments.positional.push(operand);
            }
        }
        Ok(Postfix::Test { name, arguments, negated })
    }

    fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.take_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.take_op(")") {
                    break;
                }
            }
            first = false;
            let named = matches!(
                (self.peek(), self.tokens.get(self.at + 1).map(|t| &t.kind)),
                (Some(Kind::Name(_)), Some(Kind::Op("=")))
            );
            if named {
                let name = self.name("an argument")?;
                self.at += 1;
                let value = self.expression()?;
                arguments.keyword.push((name, value));
            } else if self.is_op("*") || self.is_op("**") {
                return self.error("`*` and `**` before arguments are not supported");
            } else if arguments.keyword.is_empty() {
                let value = self.expression()?;
                arguments.positional.push(value);
            } else {
                return self.error("an argument without a name after one with a name");
            }
        }
        Ok(arguments)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let error = "expected a value";
        match self.peek() {
            Some(Kind::Name(name)) => {
                let constant = match name.as_str() {
                    "true" | "True" => Some(Expr::Bool(true)),
                    "false" | "False" => Some(Expr::Bool(false)),
                    "none" | "None" => Some(Expr::None),
                    _ => None,
                };
                let name = self.name("a variable")?;
                self.varargs |= name == "varargs";
                self.kwargs |= name == "kwargs";
                Ok(constant.unwrap_or(Expr::Name(name)))
            }
            Some(Kind::Str(_)) => {
                let mut all = String::new();
                while let Some(Kind::Str(_)) = self.peek() {
                    if let Some(Kind::Str(text)) = self.next() {
                        all += &text;
                    }
                }
                Ok(Expr::Str(all))
            }
            Some(Kind::Int(i)) => {
                let value = Expr::Int(*i);
                self.at += 1;
                Ok(value)
            }
            Some(Kind::Float(f)) => {
                let value = Expr::Float(*f);
                self.at += 1;
                Ok(value)
            }
            Some(Kind::Op("(")) => {
                self.at += 1;
                if self.take_op(")") {
                    return Ok(Expr::Tuple(vec![]));
                }
                let inner = self.tuple(true, &[])?;
                self.expect_op(")")?;
                Ok(inner)
            }
            Some(Kind::Op("[")) => {
                self.at += 1;
                let mut items = vec![];
                while !self.take_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.take_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                Ok(Expr::List(items))
            }
            Some(Kind::Op("{")) => {
                self.at += 1;
                let mut items = vec![];
                while !self.take_op("}") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.take_op("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                }
                Ok(Expr::Dict(items))
            }
            _ => self.error(error),
        }
    }
}
