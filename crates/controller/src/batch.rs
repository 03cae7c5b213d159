//! Many writes of one controller at once.

use std::{future::poll_fn, task::Poll};

/// The first batch of creations; each that goes well allows twice as many.
const FIRST: usize = 1;
/// The most that one reconciliation creates or deletes.
pub const MOST: usize = 500;

/// Runs futures concurrently; their results in order.
pub async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, result) in running.iter_mut().filter(|(_, result)| result.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *result = Some(value),
                Poll::Pending => pending = true,
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    running
        .into_iter()
        .filter_map(|(_, result)| result)
        .collect()
}

/// Does `count` things in batches that double as long as all goes well, so that what cannot succeed fails once and not a
/// hundred times; stops with the first error.
pub async fn slow_start<F, T, E>(count: usize, mut start: impl FnMut(usize) -> F) -> Result<(), E>
where
    F: Future<Output = Result<T, E>>,
{
    let (mut done, mut size) = (0, FIRST);
    while done < count {
        let batch = size.min(count - done);
        let futures = (done..done + batch).map(&mut start).collect();
        for result in all(futures).await {
            result?;
        }
        done += batch;
        size *= 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn batches_double_until_one_fails() {
        let started = RefCell::new(0);
        let attempt = |n: usize| {
            let started = &started;
            async move {
                *started.borrow_mut() += 1;
                tokio::task::yield_now().await;
                if n == 4 { Err(n) } else { Ok(()) }
            }
        };
        assert_eq!(slow_start(100, attempt).await, Err(4));
        assert_eq!(*started.borrow(), 7, "1 + 2 + 4");
        *started.borrow_mut() = 0;
        assert_eq!(slow_start(4, attempt).await, Ok(()));
        assert_eq!(*started.borrow(), 4);
    }
}
