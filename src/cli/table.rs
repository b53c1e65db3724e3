//! Tables as a terminal shows them: columns side by side without lines, numbers to the right, wrapped where they are too wide.

use comfy_table::{CellAlignment, ContentArrangement};

/// A table under construction.
pub struct Table {
    inner: comfy_table::Table,
    columns: usize,
}

/// A column's heading, and how its cells stand.
#[derive(Clone, Copy)]
pub enum Column {
    Text(&'static str),
    Number(&'static str),
}

impl Table {
    pub fn new(columns: &[Column], width: usize) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(comfy_table::presets::NOTHING);
        inner.set_header(columns.iter().map(|column| match column {
            Column::Text(heading) | Column::Number(heading) => *heading,
        }));
        if let Ok(width) = u16::try_from(width) {
            inner.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        for (index, column) in columns.iter().enumerate() {
            let styled = inner.column_mut(index).expect("the header made it");
            styled.set_padding((0, if index + 1 < columns.len() { 2 } else { 0 }));
            if let Column::Number(_) = column {
                styled.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { inner, columns: columns.len() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns);
        self.inner.add_row(cells);
    }

    /// The table, each line ending with a newline.
    pub fn render(&self) -> String {
        self.inner.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// A value that may be absent.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// Ids in the order given: `0,2,1`.
pub fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".into();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The first `width` characters, the last of them '…' where there are more.
pub fn cut(text: &str, width: usize) -> String {
    if width == usize::MAX || text.chars().count() <= width {
        return text.into();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(width: usize) -> String {
        let mut table = Table::new(&[Column::Text("NAME"), Column::Number("PARTITIONS"), Column::Text("ISR")], width);
        table.row(["orders".into(), "12".into(), list(&[0, 2, 1])]);
        table.row(["a.rather.long.name.of.a.topic".into(), "3".into(), list::<u32>(&[])]);
        table.render()
    }

    #[test]
    fn numbers_stand_to_the_right_and_nothing_trails() {
        let wanted = "\
NAME                           PARTITIONS  ISR
orders                                 12  0,2,1
a.rather.long.name.of.a.topic           3  -
";
        assert_eq!(sample(usize::MAX), wanted);
    }

    #[test]
    fn a_narrow_terminal_wraps_within_its_width() {
        let text = sample(36);
        assert!(text.lines().all(|line| line.chars().count() <= 36), "{text}");
        assert!(text.lines().count() > 3, "{text}");
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(cut("größer", 4), "grö…");
        assert_eq!(cut("größer", 6), "größer");
    }
}
