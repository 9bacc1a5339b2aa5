//! Where in the program's modules the tape is, so that late errors can say it.

use genie_wire::limits::SYMBOLS_BYTES_MAX;
use genie_wire::record::MarkKind;

use crate::SessionError;

/// Modules entered and not left; deeper ones are not named in errors.
const DEPTH_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Modules {
    symbols: Vec<Box<str>>,
    symbol_bytes: u64,
    entered: Vec<u32>,
}

impl Modules {
    pub(crate) fn symbol(&mut self, text: &str) -> Result<(), SessionError> {
        self.symbol_bytes += text.len() as u64;
        if self.symbol_bytes > SYMBOLS_BYTES_MAX as u64 {
            let max = SYMBOLS_BYTES_MAX as u64;
            return Err(SessionError::TooMany { what: "bytes of symbols", max });
        }
        self.symbols.push(text.into());
        Ok(())
    }

    /// Exits need not match: a forward that raised leaves without saying so, and its caller's
    /// exit then leaves both.
    pub(crate) fn mark(&mut self, kind: MarkKind, symbol: u32) {
        match kind {
            MarkKind::ModuleEnter if self.entered.len() < DEPTH_MAX => self.entered.push(symbol),
            MarkKind::ModuleExit => {
                if let Some(depth) = self.entered.iter().rposition(|entered| *entered == symbol) {
                    self.entered.truncate(depth);
                }
            }
            _ => {}
        }
    }

    /// `in module layers.0.mlp (MLP)`, or nothing outside of modules.
    pub(crate) fn describe(&self) -> Option<String> {
        let symbol = self.symbols.get(*self.entered.last()? as usize)?;
        let (path, class) = symbol.split_once('\0').unwrap_or((symbol, ""));
        Some(match (path, class) {
            (path, "") => format!("in module {path}"),
            ("", class) => format!("in the outermost module ({class})"),
            (path, class) => format!("in module {path} ({class})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_innermost_module() {
        let mut modules = Modules::default();
        for text in ["\0Net", "layers.0\0Block", "layers.0.mlp\0MLP", "plain"] {
            modules.symbol(text).unwrap();
        }
        let mut check = |kind, symbol, expect: Option<&str>| {
            modules.mark(kind, symbol);
            assert_eq!(modules.describe().as_deref(), expect);
        };
        use MarkKind::*;
        check(PhaseEnter, 3, None);
        check(ModuleEnter, 0, Some("in the outermost module (Net)"));
        check(ModuleEnter, 1, Some("in module layers.0 (Block)"));
        check(ModuleEnter, 2, Some("in module layers.0.mlp (MLP)"));
        check(ModuleExit, 3, Some("in module layers.0.mlp (MLP)"));
        check(ModuleExit, 1, Some("in the outermost module (Net)"));
        check(ModuleEnter, 3, Some("in module plain"));
        check(ModuleExit, 0, None);
    }

    #[test]
    fn symbols_and_depth_are_bounded() {
        let mut modules = Modules::default();
        modules.symbol("m").unwrap();
        for _ in 0..2 * DEPTH_MAX {
            modules.mark(MarkKind::ModuleEnter, 0);
        }
        assert_eq!(modules.entered.len(), DEPTH_MAX);
        let text = "x".repeat(16 << 10);
        let refused = (0..10_000).find_map(|_| modules.symbol(&text).err());
        assert!(matches!(refused, Some(SessionError::TooMany { .. })));
    }
}
