//! The file of dead letters: its versions, and what damage to it costs.

use super::*;
use crate::queue::contract::{LAKE, letter};

/// The bytes of version 1, as flagtap 0.1.0 wrote them.
fn version_1(letter: &DeadLetter) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_str(LAKE);
    bytes.put_u64(letter.position.0);
    bytes.put_u32(letter.index);
    bytes.put_u64(letter.dead_ms);
    bytes.put_str(&letter.why);
    bytes.put_bytes(&Encoder::new().unwrap().encode(&letter.record).unwrap());
    bytes
}

#[test]
fn letters_of_version_1_are_read_and_removed_beside_those_of_today() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let old = DeadLetter {
        transient: false,
        ..letter(Position(1), 1)
    };
    let mut bytes = Vec::new();
    let encoded = version_1(&old);
    put_frame(&mut bytes, &encoded);
    fs::write(&path, bytes).unwrap();
    let new = letter(Position(2), 1);
    assert!(new.transient);
    let mut letters = DeadLetters::open(path.clone(), &folder.path().join("torn")).unwrap();
    letters
        .append(LAKE, std::slice::from_ref(&new), &mut Encoder::new().unwrap())
        .unwrap();
    assert_eq!(find(&path, LAKE, 9, &|_| true).unwrap(), [old.clone(), new.clone()]);
    assert_eq!(
        summary(&path).unwrap().letters[LAKE],
        Count {
            letters: 2,
            transient: 1
        }
    );
    letters.remove(LAKE, &[(old.position, old.index)]).unwrap();
    assert_eq!(find(&path, LAKE, 9, &|_| true).unwrap(), [new]);
}

#[test]
fn what_cannot_be_read_stays_when_others_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, torn) = (folder.path().join(FILE), folder.path().join("torn"));
    let mut letters = DeadLetters::open(path.clone(), &torn).unwrap();
    let three = [1, 2, 3].map(|at| letter(Position(at), 0));
    letters.append(LAKE, &three, &mut Encoder::new().unwrap()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let mut letters = DeadLetters::open(path.clone(), &torn).unwrap();
    assert_eq!((letters.damaged(), letters.count()), (1, 2));
    letters.remove(LAKE, &[(Position(2), 0)]).unwrap();
    assert_eq!(find(&path, LAKE, 9, &|_| true).unwrap(), three[2..]);
    assert_eq!(summary(&path).unwrap().damaged, 1);
}

#[test]
fn a_letter_of_a_later_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let mut bytes = Vec::new();
    let mut later = Vec::new();
    later.put_u32(VERSIONED);
    later.put_u8(VERSION + 1);
    put_frame(&mut bytes, &later);
    fs::write(&path, &bytes).unwrap();
    let mut letters = DeadLetters::open(path.clone(), &folder.path().join("torn")).unwrap();
    letters.remove(LAKE, &[]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn damage_to_one_letter_costs_that_one_alone_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (path, torn) = (folder.path().join(FILE), folder.path().join("torn"));
    let mut letters = DeadLetters::open(path.clone(), &torn).unwrap();
    let all = [1, 2, 3, 4].map(|at| letter(Position(at), 0));
    letters.append(LAKE, &all, &mut Encoder::new().unwrap()).unwrap();
    drop(letters);
    let whole = fs::read(&path).unwrap();
    let second = HEAD + u32::from_le_bytes(whole[..4].try_into().unwrap()) as usize;
    let third = second + HEAD + u32::from_le_bytes(whole[second..second + 4].try_into().unwrap()) as usize;
    for place in second..third {
        for bit in [0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[place] ^= bit;
            fs::write(&path, &bytes).unwrap();
            let mut letters = DeadLetters::open(path.clone(), &torn).unwrap();
            assert_eq!((letters.damaged(), letters.count()), (1, 3), "byte {place}");
            letters.remove(LAKE, &[(Position(3), 0)]).unwrap();
            let left = [all[0].clone(), all[3].clone()];
            assert_eq!(find(&path, LAKE, 9, &|_| true).unwrap(), left, "byte {place}");
            assert_eq!(
                summary(&path).unwrap().damaged,
                1,
                "byte {place}: the damaged bytes stay"
            );
            assert!(!torn.exists(), "byte {place}");
        }
    }
}

#[test]
fn two_damaged_letters_are_two() {
    let folder = tempfile::tempdir().unwrap();
    let (path, torn) = (folder.path().join(FILE), folder.path().join("torn"));
    let mut letters = DeadLetters::open(path.clone(), &torn).unwrap();
    let all = [1, 2, 3].map(|at| letter(Position(at), 0));
    letters.append(LAKE, &all, &mut Encoder::new().unwrap()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let size = HEAD + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    bytes[HEAD + 9] ^= 1;
    bytes[size + HEAD + 9] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let letters = DeadLetters::open(path, &torn).unwrap();
    assert_eq!((letters.damaged(), letters.count()), (2, 1));
}
