//! Elements of a definition.

use ferry_core::vm::FileRole;
use roxmltree::Node;

/// The role of a boot file that an element below `os` names in its text.
pub fn boot_role(node: Node<'_, '_>) -> Option<FileRole> {
    let parent = node.parent()?;
    if !parent.has_tag_name("os") || !node.is_element() {
        return None;
    }
    match node.tag_name().name() {
        "nvram" => Some(FileRole::Nvram),
        "kernel" | "initrd" | "dtb" => Some(FileRole::Boot),
        _ => None,
    }
}

/// The text of an element, if it is not only white space.
pub fn own_text<'a, 'input>(node: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.text().is_some_and(|text| child.is_text() && !text.trim().is_empty()))
}

pub fn child<'a, 'input>(node: Node<'a, 'input>, tag: &'static str) -> Option<Node<'a, 'input>> {
    children(node, tag).next()
}

pub fn children<'a, 'input: 'a>(node: Node<'a, 'input>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(tag))
}
