//! Under which licence a model is given, as far as its folder says. A reading aid, not legal advice.

use serde::Serialize;

/// What a folder says of its licence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Licence {
    /// `license` of the model card's front matter, or of config.json.
    pub stated: Option<String>,
    /// The file that states it.
    pub stated_in: Option<String>,
    /// `license_name` and `license_link` of the card, where the licence is none of the well-known ones.
    pub name: Option<String>,
    /// Where the card says its text is.
    pub link: Option<String>,
    /// Licence files, and what their text looks like.
    pub files: Vec<(String, Option<&'static str>)>,
}

impl Licence {
    /// Whether nothing at all is said.
    pub fn is_unknown(&self) -> bool {
        self.stated.is_none() && self.files.is_empty()
    }

    /// Takes what the front matter of a model card says: the lines between the first two `---`, `key: value` each.
    pub(super) fn read_card(&mut self, card: &str) {
        let mut lines = card.trim_start_matches('\u{feff}').lines();
        if lines.next().map(str::trim_end) != Some("---") {
            return;
        }
        let mut in_list = false;
        for line in lines.take_while(|line| line.trim_end() != "---") {
            if in_list && let Some(item) = line.trim_start().strip_prefix("- ") {
                let item = value(item);
                self.stated = Some(self.stated.take().map_or(item.clone(), |first| format!("{first}, {item}")));
                continue;
            }
            in_list = false;
            match line.split_once(':') {
                Some(("license", rest)) if rest.trim().is_empty() => in_list = true,
                Some(("license", rest)) => self.stated = Some(value(rest)),
                Some(("license_name", rest)) => self.name = Some(value(rest)),
                Some(("license_link", rest)) => self.link = Some(value(rest)),
                _ => {}
            }
        }
        if self.stated.is_some() {
            self.stated_in = Some("README.md".into());
        }
    }

    /// For people, for example `mit (README.md)`.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Some(stated) = &self.stated {
            let name = self.name.as_ref().map_or_else(String::new, |name| format!(" {name}"));
            parts.push(format!("{stated}{name} ({})", self.stated_in.as_deref().unwrap_or("config.json")));
        }
        for (file, looks_like) in &self.files {
            parts.push(looks_like.map_or_else(|| file.clone(), |name| format!("{name} ({file})")));
        }
        if parts.is_empty() { "none stated".into() } else { parts.join(", ") }
    }

    /// The licence file that says another licence than the card.
    pub(super) fn disagreement(&self) -> Option<(&str, &'static str)> {
        let stated = self.stated.as_deref()?.to_lowercase();
        if stated == "other" || self.files.iter().any(|(_, name)| name.is_none_or(|name| stated.contains(id_of(name))))
        {
            return None;
        }
        let (file, name) = self.files.first()?;
        Some((file, (*name)?))
    }
}

/// A scalar of YAML: trimmed, without quotes, not longer than a name is.
fn value(text: &str) -> String {
    let text = text.trim().trim_matches(['"', '\'']);
    let text = text.trim_start_matches('[').trim_end_matches(']');
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Well-known licences: a phrase of the text, the name, and the word in a model card.
const KNOWN: [(&str, &str, &str); 9] = [
    ("Modified MIT License", "modified MIT", "mit"),
    ("LLAMA 3.1 COMMUNITY LICENSE", "Llama 3.1 community licence", "llama3.1"),
    ("LLAMA 3.3 COMMUNITY LICENSE", "Llama 3.3 community licence", "llama3.3"),
    ("DEEPSEEK LICENSE AGREEMENT", "DeepSeek model licence", "deepseek"),
    ("Tongyi Qianwen RESEARCH LICENSE", "Qwen research licence", "qwen"),
    ("Qwen LICENSE AGREEMENT", "Qwen licence", "qwen"),
    ("GNU GENERAL PUBLIC LICENSE", "GNU GPL", "gpl"),
    ("Apache License", "Apache-2.0", "apache"),
    ("Permission is hereby granted, free of charge", "MIT", "mit"),
];

/// What the text of a licence file looks like.
pub(super) fn recognise(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    KNOWN.iter().find(|(phrase, ..)| text.contains(&phrase.to_lowercase())).map(|(_, name, _)| *name)
}

fn id_of(name: &str) -> &'static str {
    KNOWN.iter().find(|(_, known, _)| *known == name).map_or("", |(.., id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> Licence {
        let mut licence = Licence::default();
        licence.read_card(text);
        licence
    }

    #[test]
    fn the_front_matter_of_a_card_states_the_licence() {
        assert_eq!(card("---\nlicense: mit\nlibrary_name: x\n---\n# Model\n").summary(), "mit (README.md)");
        assert_eq!(card("---\r\nlicense: \"apache-2.0\"\r\n---\r\n").stated.unwrap(), "apache-2.0");
        assert_eq!(
            card("---\nlanguage:\n- en\nlicense:\n- mit\n- apache-2.0\n---\n").stated.unwrap(),
            "mit, apache-2.0"
        );
        let other = card("---\nlicense: other\nlicense_name: deepseek\nlicense_link: LICENSE\n---\n");
        assert_eq!((other.summary().as_str(), other.link.as_deref()), ("other deepseek (README.md)", Some("LICENSE")));
    }

    #[test]
    fn text_outside_of_the_front_matter_states_nothing() {
        for text in ["", "license: mit", "# Model\n---\nlicense: mit\n---\n", "---\nx: 1\n---\nlicense: mit\n"] {
            assert!(card(text).is_unknown(), "{text}");
        }
    }

    #[test]
    fn licence_texts_are_recognised_and_compared_with_the_card() {
        assert_eq!(
            recognise("MIT License\n\nPermission is hereby granted, free of charge, to any person"),
            Some("MIT")
        );
        assert_eq!(recognise("   Apache License\n   Version 2.0, January 2004"), Some("Apache-2.0"));
        assert_eq!(recognise("All rights reserved."), None);
        let mut licence = card("---\nlicense: mit\n---\n");
        licence.files.push(("LICENSE".into(), Some("Apache-2.0")));
        assert_eq!(licence.disagreement(), Some(("LICENSE", "Apache-2.0")));
        licence.files.push(("LICENSE-CODE".into(), Some("MIT")));
        assert_eq!(licence.disagreement(), None);
    }
}
