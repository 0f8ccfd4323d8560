//! Finds import cycles between files.

use std::collections::{BTreeSet, VecDeque};

use crate::modules::{Edge, Tree};

/// The shortest cycle through each file that is in one, each cycle once, as text; the shortest first.
pub(crate) fn circles(tree: &Tree) -> Vec<String> {
    let edges: Vec<Vec<Edge>> = (0..tree.files.len()).map(|file| tree.edges(file)).collect();
    let mut seen = BTreeSet::new();
    let mut found: Vec<Vec<(usize, Edge)>> = Vec::new();
    for start in 0..tree.files.len() {
        if let Some(circle) = shortest(&edges, start) {
            let members: BTreeSet<usize> = circle.iter().map(|(from, _)| *from).collect();
            if seen.insert(members) {
                found.push(circle);
            }
        }
    }
    found.sort_by_key(Vec::len);
    found.iter().map(|circle| described(tree, circle)).collect()
}

/// The steps of the shortest path from a file back to itself.
fn shortest(edges: &[Vec<Edge>], start: usize) -> Option<Vec<(usize, Edge)>> {
    let mut came: Vec<Option<(usize, Edge)>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for edge in &edges[at] {
            if came[edge.to].is_none() {
                came[edge.to] = Some((at, edge.clone()));
                queue.push_back(edge.to);
            }
        }
    }
    let mut circle = vec![came[start].clone()?];
    while circle[circle.len() - 1].0 != start {
        let before = circle[circle.len() - 1].0;
        circle.push(came[before].clone()?);
    }
    circle.reverse();
    Some(circle)
}

fn described(tree: &Tree, circle: &[(usize, Edge)]) -> String {
    let steps =
        circle.iter().map(|(from, edge)| format!("  {}:{} names {} of", tree.files[*from].path, edge.line, edge.path));
    let last = format!("  {}", tree.files[circle[0].0].path);
    steps.chain([last]).collect::<Vec<_>>().join("\n")
}
