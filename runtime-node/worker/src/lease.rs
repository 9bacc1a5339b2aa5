//! The memory of its device that this worker has borrowed: libtorch's allocator asks for more.

use std::sync::OnceLock;

use genie_aten::execute::borrow_memory;
use genie_channel::Borrower;

static BORROWER: OnceLock<Borrower> = OnceLock::new();

/// Lets libtorch's allocator have what the gate lends, from now on. After
/// `genie_aten::execute::count_memory`, before there are other threads.
pub fn borrow(borrower: Borrower) {
    let borrower = BORROWER.get_or_init(|| borrower);
    borrow_memory(borrower.in_use(), borrower.lease(), more);
}

extern "C" fn more(bytes: u64) -> bool {
    BORROWER.get().is_some_and(|borrower| borrower.ask(bytes))
}
