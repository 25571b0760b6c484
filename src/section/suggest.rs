//! What a mistyped key or value was probably meant to be.
//!
//! Suggests only words of the program, never words of the file.

/// Returns the message for a text that is none of `choices`, with the likely intention. Does not repeat the text.
pub fn not_a_choice(text: &str, choices: &[&str]) -> String {
    match closest(text, choices) {
        Some(near) => format!("is not a known value (did you mean `{near}`?)"),
        None => "is not a known value".to_owned(),
    }
}

/// Returns the candidate that `word` was probably meant to be: the same but for case, hyphens and underscores, or at
/// most two typing mistakes away (one for short words).
pub(super) fn closest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
    let word = plain(word);
    if word.len() > 64 {
        return None;
    }
    candidates
        .iter()
        .map(|candidate| (distance(&word, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= if candidate.len() < 4 { 1 } else { 2 })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for ((j, to), pair) in b.iter().enumerate().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.get(j).copied().unwrap_or(usize::MAX);
            next.push(
                (diagonal + usize::from(from != *to))
                    .min(above + 1)
                    .min(left.saturating_add(1)),
            );
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
