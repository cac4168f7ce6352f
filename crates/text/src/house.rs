//! Special tokens and chat template of the models that `jevons` trains: the form of DeepSeek-R1.

/// Ids 0 to 6 of a house vocabulary: begin, end, padding, user, assistant, and the borders of thinking.
pub const SPECIAL_TOKENS: [&str; 7] = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
];

/// Begin, system text, then user and assistant turns; earlier turns keep only what follows `</think>`.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}\
{{ message['content'] }}{% elif message['role'] == 'user' %}<｜User｜>{{ message['content'] }}\
{% elif message['role'] == 'assistant' %}<｜Assistant｜>{{ message['content'].split('</think>')[-1] }}{{ eos_token }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}";

/// A tokenizer_config.json that `transformers` opens.
pub fn tokenizer_config_json(model_max_length: usize) -> String {
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "pad_token": SPECIAL_TOKENS[2],
        "add_bos_token": true,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    });
    format!("{config:#}\n")
}
