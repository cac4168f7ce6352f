//! Line editing with history, completion of /commands and pasted lines.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::AtomicBool},
};

use reedline::{
    ColumnarMenu, Completer, CompletionResult, DefaultHinter, EditCommand, Emacs, FileBackedHistory, KeyCode,
    KeyModifiers, MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch, PromptHistorySearchStatus, Reedline,
    ReedlineEvent, ReedlineMenu, SimpleMatchHighlighter, Span, Suggestion, default_emacs_keybindings,
};

use super::slash;

const MENU: &str = "commands";

/// An editor that gives up its line when `stop` is set.
pub fn editor(history: Option<FileBackedHistory>, colored: bool, stop: Arc<AtomicBool>) -> Reedline {
    let mut keys = default_emacs_keybindings();
    let menu = ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu(MENU.into()), ReedlineEvent::MenuNext]);
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, menu);
    keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, ReedlineEvent::Edit(vec![EditCommand::InsertNewline]));
    let editor = Reedline::create()
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_completer(Box::new(Commands))
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(ColumnarMenu::default().with_name(MENU).with_columns(1))))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_highlighter(Box::new(SimpleMatchHighlighter::default()))
        .with_ansi_colors(colored)
        .use_bracketed_paste(true)
        .with_break_signal(stop);
    match history {
        Some(history) => editor.with_history(Box::new(history)).with_hinter(Box::new(DefaultHinter::default())),
        None => editor,
    }
}

struct Commands;

impl Completer for Commands {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let (start, names) = slash::complete(&line[..pos]);
        let suggestion = |(name, does): (&str, &str)| Suggestion {
            value: name.to_owned(),
            description: (!does.is_empty()).then(|| does.to_owned()),
            span: Span::new(start, pos),
            append_whitespace: true,
            ..Default::default()
        };
        CompletionResult::fresh(names.into_iter().map(suggestion).collect::<Vec<_>>())
    }
}

/// `> `, and `· ` before further lines of one message.
pub struct ChatPrompt;

impl Prompt for ChatPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "· ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        let failing = match search.status {
            PromptHistorySearchStatus::Passing => "",
            PromptHistorySearchStatus::Failing => "nothing ",
        };
        format!("({failing}found for `{}`) ", search.term).into()
    }
}
