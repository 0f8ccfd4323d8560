//! Reads a text/event-stream: bytes in, events out, with limits on what a faulty server can make the client store.

/// More than a job with a thousand lines of log needs.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Its `id:`, as sent.
    pub id: Option<String>,
    /// Its `data:` lines, joined by line feeds.
    pub data: String,
}

/// The event is longer than this program accepts.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// Splits a stream into events, independent of how its bytes are divided.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    id: Option<String>,
    data: Option<String>,
    ready: std::collections::VecDeque<Received>,
}

impl Parser {
    /// Adds the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if held + piece.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
            self.line.extend_from_slice(piece);
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                self.take_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            }
        }
        Ok(())
    }

    /// The oldest complete event.
    pub fn pop(&mut self) -> Option<Received> {
        self.ready.pop_front()
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            let id = self.id.take();
            // An event without data is a comment that keeps the connection alive.
            self.ready.extend(self.data.take().map(|data| Received { id, data }));
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // `event:` repeats what the data contain; `retry:` and comments are ignored.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(stream: &[u8], piece: usize) -> Vec<Received> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in stream.chunks(piece.max(1)) {
            parser.push(piece).expect("short enough");
            events.extend(std::iter::from_fn(|| parser.pop()));
        }
        events
    }

    fn received(id: Option<&str>, data: &str) -> Received {
        Received { id: id.map(str::to_owned), data: data.to_owned() }
    }

    #[test]
    fn events_comments_and_several_lines_are_told_apart() {
        let stream = b": hello\n\nid: 7\nevent: job\ndata: {}\n\r\ndata:a\ndata: b\r\n\r\nid: 9\n\ndata: cut";
        let expected = [received(Some("7"), "{}"), received(None, "a\nb")];
        assert_eq!(parse(stream, usize::MAX), expected);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert_eq!((0..5).try_for_each(|_| parser.push(&piece)), Err(TooLong));
    }

    proptest! {
        #[test]
        fn cutting_the_stream_changes_nothing(stream: Vec<u8>, piece in 1usize..9) {
            prop_assert_eq!(parse(&stream, usize::MAX), parse(&stream, piece));
        }

        #[test]
        fn what_is_written_is_read(events in prop::collection::vec((any::<u64>(), "[^\r\n]{0,40}"), 0..9)) {
            let stream: String = events.iter().map(|(id, data)| format!("id: {id}\ndata: {data}\n\n")).collect();
            let expected: Vec<_> = events.iter().map(|(id, data)| received(Some(&id.to_string()), data)).collect();
            prop_assert_eq!(parse(stream.as_bytes(), 5), expected);
        }
    }
}
