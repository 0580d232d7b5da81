//! The order in which m2sh writes the rows of a hash, which decides ties between routes.

use std::collections::VecDeque;

/// Orders pairs as m2sh does: it keeps a hash in a ternary search tree and walks that tree breadth first, so a database
/// made by m2sh has its routes in this order and not in the file's. Where several routes could take a path (`/x` before
/// `/x(a)`, or the first of two longer routes for a short path) the lower rowid wins. A `.conf` that is served directly
/// must route as the database that m2sh makes of it, so the model takes m2sh's order.
///
/// A key given twice keeps its first place and has its last value, as in the tree.
pub(super) fn breadth_first<T>(pairs: Vec<(String, T)>) -> Vec<T> {
    let mut nodes: Vec<Node<T>> = Vec::new();
    for (key, value) in pairs {
        insert(&mut nodes, key.as_bytes(), value);
    }
    let mut ordered = Vec::new();
    let mut queue: VecDeque<usize> = (!nodes.is_empty()).then_some(0).into_iter().collect();
    while let Some(at) = queue.pop_front() {
        let Some(node) = nodes.get_mut(at) else {
            continue;
        };
        queue.extend([node.low, node.equal, node.high].into_iter().flatten());
        ordered.extend(node.value.take());
    }
    ordered
}

struct Node<T> {
    byte: u8,
    low: Option<usize>,
    equal: Option<usize>,
    high: Option<usize>,
    value: Option<T>,
}

fn insert<T>(nodes: &mut Vec<Node<T>>, key: &[u8], value: T) {
    // m2sh reads the terminating NUL of an empty key as its only byte.
    let mut key = if key.is_empty() {
        b"\0".iter()
    } else {
        key.iter()
    };
    let Some(&first) = key.next() else { return };
    if nodes.is_empty() {
        nodes.push(Node::new(first));
    }
    let (mut at, mut byte) = (0, first);
    loop {
        let made = nodes.len();
        let node = &mut nodes[at];
        let link = match byte.cmp(&node.byte) {
            std::cmp::Ordering::Less => &mut node.low,
            std::cmp::Ordering::Greater => &mut node.high,
            std::cmp::Ordering::Equal => {
                let Some(&next) = key.next() else {
                    node.value = Some(value);
                    return;
                };
                byte = next;
                &mut node.equal
            }
        };
        at = *link.get_or_insert(made);
        if at == made {
            nodes.push(Node::new(byte));
        }
    }
}

impl<T> Node<T> {
    fn new(byte: u8) -> Node<T> {
        Node {
            byte,
            low: None,
            equal: None,
            high: None,
            value: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_come_first_and_a_repeated_key_keeps_its_place() {
        fn pairs(keys: &[&'static str]) -> Vec<(String, &'static str)> {
            keys.iter().map(|key| ((*key).to_owned(), *key)).collect()
        }
        assert_eq!(
            breadth_first(pairs(&["/x(a)", "/", "/x", "/same"])),
            ["/", "/x", "/x(a)", "/same"]
        );
        let repeated = vec![
            ("/b".to_owned(), 1),
            ("/a".to_owned(), 2),
            ("/b".to_owned(), 3),
        ];
        assert_eq!(breadth_first(repeated), [3, 2]);
        assert_eq!(breadth_first::<()>(Vec::new()), []);
        assert_eq!(breadth_first(pairs(&["", "/"])), ["", "/"]);
    }
}
