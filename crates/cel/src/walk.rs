//! All parts of a syntax tree.

use cel::common::ast::{EntryExpr, Expr, IdedExpr};

/// Visits an expression and every one in it. Its depth was bounded when it was checked.
pub(super) fn each<'e>(expr: &'e IdedExpr, visit: &mut dyn FnMut(&'e IdedExpr)) {
    visit(expr);
    let mut go = |expr: &'e IdedExpr| each(expr, visit);
    match &expr.expr {
        Expr::Select(select) => go(&select.operand),
        Expr::List(list) => list.elements.iter().for_each(go),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    go(&entry.key);
                    go(&entry.value);
                }
            }
        }
        Expr::Call(call) => call
            .target
            .as_deref()
            .into_iter()
            .chain(&call.args)
            .for_each(go),
        Expr::Comprehension(it) => {
            for part in [
                &it.iter_range,
                &it.accu_init,
                &it.loop_cond,
                &it.loop_step,
                &it.result,
            ] {
                go(part);
            }
        }
        Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}
