//! Changes to single members of a JSON object that leave every other byte as it was.

use crate::export::Members;

/// What becomes of a member.
pub(super) enum Fate {
    Keep,
    Drop,
    /// Its value becomes this JSON text.
    Replace(String),
}

/// Returns the object `json` with its members treated by `fates` (one each, in order) and `added`, a member as JSON text, at
/// its end. `None` if nothing changes.
pub(super) fn rewrite(json: &str, members: &Members<'_>, fates: &[Fate], added: Option<&str>) -> Option<String> {
    if added.is_none() && fates.iter().all(|fate| matches!(fate, Fate::Keep)) {
        return None;
    }
    let place = |part: &str| part.as_ptr().addr() - json.as_ptr().addr();
    let opening = members.iter().next().map_or_else(
        || json.find('{').map_or(json.len(), |brace| brace + 1),
        |member| place(member.name),
    );
    let mut out = String::with_capacity(json.len() + added.map_or(0, str::len));
    out.push_str(&json[..opening]);
    let (mut at, mut kept) = (opening, false);
    for (member, fate) in members.iter().zip(fates) {
        let (start, value) = (place(member.name), place(member.value));
        if !matches!(fate, Fate::Drop) {
            // What stands before a member holds its comma; the first one kept needs none.
            if kept {
                out.push_str(&json[at..start]);
            }
            kept = true;
            out.push_str(&json[start..value]);
            match fate {
                Fate::Replace(text) => out.push_str(text),
                _ => out.push_str(member.value),
            }
        }
        at = value + member.value.len();
    }
    if let Some(added) = added {
        if kept {
            out.push(',');
        }
        out.push_str(added);
    }
    out.push_str(&json[at..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_changes() {
        let json = "{ \"a\" : 1 , \"b\":[ 2 ],\n\"c\": {} } ";
        let members = Members::of(json).unwrap();
        let rewritten = |fates: [Fate; 3], added| rewrite(json, &members, &fates, added);
        use Fate::{Drop, Keep, Replace};
        assert_eq!(rewritten([Keep, Keep, Keep], None), None);
        assert_eq!(
            rewritten([Keep, Drop, Keep], None).unwrap(),
            "{ \"a\" : 1,\n\"c\": {} } "
        );
        assert_eq!(rewritten([Drop, Keep, Drop], None).unwrap(), "{ \"b\":[ 2 ] } ");
        assert_eq!(rewritten([Drop, Drop, Drop], Some("\"d\":1")).unwrap(), "{ \"d\":1 } ");
        assert_eq!(
            rewritten([Keep, Replace("7".to_owned()), Keep], Some("\"d\":1")).unwrap(),
            "{ \"a\" : 1 , \"b\":7,\n\"c\": {},\"d\":1 } "
        );
        let empty = Members::of("{ }").unwrap();
        assert_eq!(rewrite("{ }", &empty, &[], Some("\"d\":1")).unwrap(), "{\"d\":1 }");
    }
}
