//! The tree of keys under both tables: which keys begin a text, or are begun by it. No I/O.
//!
//! Mongrel2 holds its keys in a ternary search tree and its routing follows that tree's habits. The same answers come
//! from a plain tree whose branches stay in the order of insertion, since the first branch made is the root of the
//! ternary tree's next level.

/// Keys of bytes, each with the entries filed under it.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// In the order in which they were made.
    branches: Vec<(u8, usize)>,
    /// Entries whose key ends here, in the order in which they are tried.
    chain: Vec<usize>,
    /// Length of the key that ends here.
    depth: usize,
}

/// How a key was reached by a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// They are equal.
    Equal,
    /// The key begins the text; no longer one does.
    Begins,
    /// The text ended inside the key.
    Longer,
}

impl Tree {
    pub(super) fn new() -> Tree {
        Tree {
            nodes: vec![Node::default()],
        }
    }

    /// Files `entry` under `key`. The first entry of a key is tried first, then the others, the latest of them first:
    /// Mongrel2 links each new one in behind the first.
    pub(super) fn insert(&mut self, key: impl IntoIterator<Item = u8>, entry: usize) {
        let mut at = 0;
        for (depth, byte) in key.into_iter().enumerate() {
            let next = self.nodes[at]
                .branches
                .iter()
                .find(|&&(branch, _)| branch == byte);
            at = if let Some(&(_, next)) = next {
                next
            } else {
                let made = self.nodes.len();
                self.nodes[at].branches.push((byte, made));
                self.nodes.push(Node {
                    depth: depth + 1,
                    ..Node::default()
                });
                made
            };
        }
        let chain = &mut self.nodes[at].chain;
        chain.insert(chain.len().min(1), entry);
    }

    /// The entries of the key that `text` leads to, the key's length, and how it was reached.
    ///
    /// A text that ends inside keys takes the first branch made at every parting, down to the first key on that line.
    pub(super) fn find(
        &self,
        text: impl IntoIterator<Item = u8>,
    ) -> Option<(&[usize], usize, Found)> {
        let mut at = &self.nodes[0];
        let mut begins = None;
        let mut found = Found::Equal;
        let mut text = text.into_iter().peekable();
        text.peek()?;
        for byte in text {
            if !at.chain.is_empty() {
                begins = Some(at);
            }
            match at.branches.iter().find(|&&(branch, _)| branch == byte) {
                Some(&(_, next)) => at = &self.nodes[next],
                None => {
                    return begins.map(|node| (node.chain.as_slice(), node.depth, Found::Begins));
                }
            }
        }
        while at.chain.is_empty() {
            found = Found::Longer;
            let &(_, next) = at.branches.first()?;
            at = &self.nodes[next];
        }
        Some((&at.chain, at.depth, found))
    }

    /// Whether every text leads to the same key in both, with entries that `same` holds to be the same, in one order.
    pub(super) fn alike(&self, other: &Tree, same: impl Fn(usize, usize) -> bool) -> bool {
        let mut pairs = vec![(0, 0)];
        while let Some((left, right)) = pairs.pop() {
            let (left, right) = (&self.nodes[left], &other.nodes[right]);
            let chains = left.chain.len() == right.chain.len()
                && left
                    .chain
                    .iter()
                    .zip(&right.chain)
                    .all(|(&left, &right)| same(left, right));
            // Only the first branch counts in its place: it is the one a short text follows.
            let first = left.branches.first().map(|&(byte, _)| byte)
                == right.branches.first().map(|&(byte, _)| byte);
            if !chains || !first || left.branches.len() != right.branches.len() {
                return false;
            }
            for &(byte, next) in &left.branches {
                match right.branches.iter().find(|&&(other, _)| other == byte) {
                    Some(&(_, counterpart)) => pairs.push((next, counterpart)),
                    None => return false,
                }
            }
        }
        true
    }
}
