//! JSON to values, counted while it is read.

use std::{cell::RefCell, fmt, rc::Rc};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{
    Fault, Origin,
    value::{Dict, List, Meter, Result, Text, Value},
};

/// `json.loads`. What it gives is trusted as little as the least trusted character of the text.
pub(super) fn parse(meter: &Rc<Meter>, text: &Text) -> Result<Value> {
    meter.spend_bytes(64 * text.as_str().len())?;
    let failed = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_str(text.as_str());
    let seed = Seed { meter, origin: text.weakest(), failed: &failed };
    let parsed = seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    let fault = failed.take();
    parsed.map_err(|e| fault.unwrap_or_else(|| Fault::message(format!("from_json: {e}"))))
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    meter: &'a Rc<Meter>,
    origin: Origin,
    /// A fault of ours, which the reader's own error cannot carry.
    failed: &'a RefCell<Option<Fault>>,
}

impl Seed<'_> {
    fn take<T, E: Error>(self, result: Result<T>) -> std::result::Result<T, E> {
        result.map_err(|fault| {
            self.failed.replace(Some(fault));
            E::custom("stopped")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_bool<E: Error>(self, b: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E: Error>(self, i: i64) -> std::result::Result<Value, E> {
        Ok(Value::Int(i.into()))
    }

    fn visit_u64<E: Error>(self, u: u64) -> std::result::Result<Value, E> {
        Ok(Value::Int(u.into()))
    }

    fn visit_f64<E: Error>(self, f: f64) -> std::result::Result<Value, E> {
        Ok(Value::Float(f))
    }

    fn visit_str<E: Error>(self, s: &str) -> std::result::Result<Value, E> {
        self.take(Value::str(self.meter, s, self.origin))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let list = self.take(List::new(self.meter, false))?;
        while let Some(item) = items.next_element_seed(self)? {
            self.take(list.push(item))?;
        }
        Ok(Value::List(Rc::new(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let dict = self.take(Dict::new(self.meter))?;
        while let Some((key, value)) = items.next_entry_seed(self, self)? {
            self.take(dict.insert(key, value))?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }
}
