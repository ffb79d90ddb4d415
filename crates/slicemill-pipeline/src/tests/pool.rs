//! Leases: order, return, cancellation.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use futures::poll;

use super::*;
use crate::Supervision;

fn pool(devices: &str) -> (Arc<FakeFactory>, DevicePool) {
    let factory = Arc::new(FakeFactory::new(small_policy(), FakeOptions::default()));
    let shared: Arc<dyn BackendFactory> = factory.clone();
    let pool = DevicePool::start(&shared, &parse_devices(devices).unwrap()).unwrap();
    (factory, pool)
}

fn supervision() -> Supervision {
    Supervision::new(&limits(), Arc::default())
}

#[test]
fn leases_are_given_in_the_order_of_asking() {
    let (_, pool) = pool("cpu:0,cpu:1");
    wait(async {
        let first = pool.lease().await.unwrap();
        let second = pool.lease().await.unwrap();
        assert_ne!(first.device(), second.device());
        let mut asked: Vec<_> = (0..6).map(|_| Box::pin(pool.lease())).collect();
        for lease in &mut asked {
            assert!(poll!(lease).is_pending());
        }
        // One that goes away while it waits is passed over.
        drop(asked.remove(2));
        let mut held = vec![first, second];
        for number in 0..5 {
            let given_back = held.remove(0);
            let device = given_back.device();
            drop(given_back);
            for (later, lease) in asked.iter_mut().enumerate() {
                match poll!(lease) {
                    std::task::Poll::Ready(lease) => {
                        assert_eq!(later, 0, "lease {number} came out of turn");
                        held.push(lease.unwrap());
                        break;
                    }
                    std::task::Poll::Pending => assert_ne!(later, 0, "the next in turn got nothing"),
                }
            }
            assert_eq!(held.last().unwrap().device(), device);
            drop(asked.remove(0));
        }
    });
    pool.join();
}

#[test]
fn work_runs_on_the_thread_of_its_device_and_gives_it_back() {
    let (_, pool) = pool("cpu:7");
    let names = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let names = names.clone();
        let limits = wait(async {
            let lease = pool.lease().await.unwrap();
            let work = lease.run(supervision(), move |backend, cancel| {
                let name = std::thread::current().name().map(ToOwned::to_owned);
                names.lock().unwrap().push((name, std::thread::current().id(), cancel.is_cancelled()));
                backend.limits()
            });
            work.await.unwrap()
        });
        assert_eq!(limits, pool.limits());
    }
    let names = names.lock().unwrap();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|entry| *entry == names[0] && !entry.2));
    assert_eq!(names[0].0.as_deref(), Some("slicemill cpu:7"));
    pool.join();
}

#[test]
fn a_device_is_not_given_away_while_dropped_work_still_runs() {
    let (_, pool) = pool("cpu");
    let (started_in, started_out) = mpsc::channel();
    let (go_in, go_out) = mpsc::channel::<()>();
    let saw_cancel = Arc::new(AtomicBool::new(false));
    let saw = saw_cancel.clone();
    wait(async {
        let lease = pool.lease().await.unwrap();
        let mut work = Box::pin(lease.run(supervision(), move |_, cancel| {
            started_in.send(()).unwrap();
            go_out.recv().unwrap();
            saw.store(cancel.is_cancelled(), Ordering::SeqCst);
        }));
        assert!(poll!(&mut work).is_pending());
        started_out.recv().unwrap();
        drop(work);
        let mut next = Box::pin(pool.lease());
        assert!(poll!(&mut next).is_pending(), "the device is still in use");
        go_in.send(()).unwrap();
        drop(next.await.unwrap());
    });
    assert!(saw_cancel.load(Ordering::SeqCst));
    pool.join();
}

#[test]
fn limits_of_a_pool_are_the_least_of_its_devices() {
    let a = crate::BackendLimits { batch_views_max: 1, batch_patches_max: 20, sequences_max: 3 };
    let b = crate::BackendLimits { batch_views_max: 10, batch_patches_max: 2, sequences_max: 30 };
    let least = crate::BackendLimits { batch_views_max: 1, batch_patches_max: 2, sequences_max: 3 };
    assert_eq!(a.min(b), least);
    let (factory, _) = pool("cpu");
    let shared: Arc<dyn BackendFactory> = factory;
    assert!(DevicePool::start(&shared, &[]).is_err());
}
