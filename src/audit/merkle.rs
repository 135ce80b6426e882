//! The Merkle tree over the hashes of records (RFC 6962 section 2.1): one root for many records,
//! and a short path from any of them to it, without showing the others.

use aws_lc_rs::digest;

use super::record::Hash;

/// The hash of a leaf.
fn leaf(record: &Hash) -> Hash {
    digest_of(&[&[0], record.as_bytes()])
}

/// The hash of an inner node.
fn node(left: &Hash, right: &Hash) -> Hash {
    digest_of(&[&[1], left.as_bytes(), right.as_bytes()])
}

fn digest_of(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Hash(hash)
}

/// A tree that grows at its right end; only the roots of its full parts are kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Frontier {
    /// Height and root of each full part, left to right, heights falling.
    parts: Vec<(u32, Hash)>,
}

impl Frontier {
    /// One more record.
    pub fn push(&mut self, record: &Hash) {
        let (mut height, mut root) = (0, leaf(record));
        while let Some((other, left)) = self.parts.last() {
            if *other != height {
                break;
            }
            root = node(left, &root);
            height += 1;
            self.parts.pop();
        }
        self.parts.push((height, root));
    }

    /// The root over all; `None` over nothing.
    pub fn root(&self) -> Option<Hash> {
        let mut parts = self.parts.iter().rev().map(|(_, root)| *root);
        let last = parts.next()?;
        Some(parts.fold(last, |right, left| node(&left, &right)))
    }
}

fn root_of(records: &[Hash]) -> Option<Hash> {
    let mut frontier = Frontier::default();
    for record in records {
        frontier.push(record);
    }
    frontier.root()
}

/// The largest power of two below `count`, which is above 1.
fn split(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// The path from record `index` to the root over `records`, lowest first.
pub(super) fn path(records: &[Hash], index: usize) -> Option<Vec<Hash>> {
    let mut path = Vec::new();
    let (mut records, mut index) = (records, index);
    if index >= records.len() {
        return None;
    }
    while records.len() > 1 {
        let (left, right) = records.split_at_checked(split(records.len()))?;
        if index < left.len() {
            path.push(root_of(right)?);
            records = left;
        } else {
            path.push(root_of(left)?);
            index -= left.len();
            records = right;
        }
    }
    path.reverse();
    Some(path)
}

/// The root that `path` leads to from record `index` of `count`; `None` where it has not the
/// length of such a path.
pub(super) fn climb(record: &Hash, index: u64, count: u64, path: &[Hash]) -> Option<Hash> {
    if index >= count {
        return None;
    }
    let (mut index, mut last) = (index, count - 1);
    let mut hash = leaf(record);
    let mut rest = path.iter();
    // RFC 9162 section 2.1.3.2.
    while last > 0 {
        if index % 2 == 1 || index == last {
            hash = node(rest.next()?, &hash);
            while index.is_multiple_of(2) && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, rest.next()?);
        }
        index >>= 1;
        last >>= 1;
    }
    rest.next().is_none().then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize) -> Vec<Hash> {
        (0..count)
            .map(|number| digest_of(&[&number.to_be_bytes()]))
            .collect()
    }

    /// The definition of RFC 6962, word by word.
    fn defined(records: &[Hash]) -> Hash {
        match records {
            [one] => leaf(one),
            _ => {
                let (left, right) = records.split_at(split(records.len()));
                node(&defined(left), &defined(right))
            }
        }
    }

    #[test]
    fn every_record_of_every_tree_has_a_path_and_only_its_own() {
        for count in 1..=33 {
            let all = records(count);
            let root = root_of(&all).unwrap();
            assert_eq!(root, defined(&all), "{count}");
            for (index, record) in all.iter().enumerate() {
                let path = path(&all, index).unwrap();
                let (at, of) = (index as u64, count as u64);
                assert_eq!(
                    climb(record, at, of, &path),
                    Some(root),
                    "{index} of {count}"
                );
                let other = &all[(index + 1) % count];
                if count > 1 {
                    assert_ne!(climb(other, at, of, &path), Some(root));
                    assert_ne!(climb(record, (at + 1) % of, of, &path), Some(root));
                    assert_eq!(climb(record, at, of, &path[1..]), None);
                }
                let longer = [path.as_slice(), &[root]].concat();
                assert_eq!(climb(record, at, of, &longer), None);
                assert_eq!(climb(record, of, of, &path), None);
            }
            assert_eq!(path(&all, count), None);
        }
        assert_eq!(root_of(&[]), None);
    }
}
