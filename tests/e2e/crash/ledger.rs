//! What the server has acknowledged, and whether it keeps to it.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use crewcall_sdk::{
    Client,
    proto::{Outcome, Task, TaskFilter, outcome::Kind},
};
use serde_json::Value;

/// The promises of one data directory, over all servers that it has had.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Acknowledged tasks, with what is known of their end.
    tasks: HashMap<String, Entry>,
    keys: HashMap<String, String>,
    /// Task and attempt that each lease was handed out for.
    leases: HashMap<u64, (String, u32)>,
    broken: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    outcome: Option<Outcome>,
}

impl Ledger {
    /// The server has accepted task `number` under `id`.
    pub(crate) fn accepted(&self, number: u64, key: Option<&str>, id: &str, attached: bool) {
        let mut state = self.state.lock().unwrap();
        if let Some(key) = key {
            let first = state.keys.entry(key.to_owned()).or_insert_with(|| id.to_owned()).clone();
            if first != id {
                state.broken.push(format!("key {key} has two tasks, {first} and {id}"));
            }
        } else if attached || state.tasks.contains_key(id) {
            state.broken.push(format!("task {number} has no key, and was given the older task {id}"));
        }
        let entry = state.tasks.entry(id.to_owned()).or_insert(Entry { number, outcome: None });
        if entry.number != number {
            let message = format!("{id} was given to both {} and {number}", entry.number);
            state.broken.push(message);
        }
    }

    /// The server has told how task `id` ended.
    pub(crate) fn ended(&self, id: &str, outcome: &Outcome) {
        let mut state = self.state.lock().unwrap();
        let Some(entry) = state.tasks.get_mut(id) else { return };
        let number = entry.number;
        let before = entry.outcome.get_or_insert_with(|| outcome.clone()).clone();
        if before != *outcome {
            state.broken.push(format!("{id} ended as {}, then as {}", brief(&before), brief(outcome)));
        }
        let Some(Kind::Succeeded(result)) = &outcome.kind else { return };
        let result: Value = result.decode().unwrap();
        let ran = result["lease"].as_u64().and_then(|lease| state.leases.get(&lease));
        if result["number"] != number || ran.is_none_or(|(task, _)| task != id) {
            state.broken.push(format!("{id} is task {number} and its result is {}", brief(&result)));
        }
    }

    /// A worker was given a lease.
    pub(crate) fn leased(&self, lease: u64, id: &str, attempt: u32) {
        let mut state = self.state.lock().unwrap();
        if let Some(earlier) = state.leases.insert(lease, (id.to_owned(), attempt)) {
            state.broken.push(format!("lease {lease}: first {earlier:?}, then {:?}", (id, attempt)));
        }
    }

    pub(crate) fn broke(&self, what: String) {
        self.state.lock().unwrap().broken.push(what);
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.state.lock().unwrap().tasks.len()
    }

    pub(crate) fn leases(&self) -> usize {
        self.state.lock().unwrap().leases.len()
    }

    pub(crate) fn keys(&self) -> usize {
        self.state.lock().unwrap().keys.len()
    }

    pub(crate) fn outcomes(&self) -> usize {
        self.state.lock().unwrap().tasks.values().filter(|entry| entry.outcome.is_some()).count()
    }

    /// An acknowledged task, by any number.
    pub(crate) fn any(&self, number: usize) -> Option<String> {
        let state = self.state.lock().unwrap();
        let count = state.tasks.len().max(1);
        state.tasks.keys().nth(number % count).cloned()
    }

    pub(crate) fn open(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let open = state.tasks.iter().filter(|(_, entry)| entry.outcome.is_none());
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Compares all that was acknowledged with all that the server has. How many it has lost.
    pub(crate) async fn compare(&self, client: &Client) -> usize {
        let tasks = all_tasks(client).await;
        let mut ids = HashSet::new();
        let mut keys = HashMap::new();
        for task in &tasks {
            if !ids.insert(task.id.as_str()) {
                self.broke(format!("{} is listed twice", task.id));
            }
            let key = task.options.as_ref().map_or("", |options| options.idempotency_key.as_str());
            if !key.is_empty()
                && let Some(other) = keys.insert(key, &task.id)
            {
                self.broke(format!("key {key} has two tasks, {other} and {}", task.id));
            }
            match &task.outcome {
                Some(outcome) => self.ended(&task.id, outcome),
                None if self.has_ended(&task.id) => {
                    self.broke(format!("{} had ended, and is {:?}", task.id, task.state()));
                }
                None => {}
            }
        }
        let mut state = self.state.lock().unwrap();
        let lost: Vec<String> = state.tasks.keys().filter(|id| !ids.contains(id.as_str())).cloned().collect();
        state.broken.extend(lost.iter().map(|id| format!("{id} was acknowledged and is lost")));
        lost.len()
    }

    fn has_ended(&self, id: &str) -> bool {
        self.state.lock().unwrap().tasks.get(id).is_some_and(|entry| entry.outcome.is_some())
    }

    /// The promises that were not kept, since the last time.
    pub(crate) fn broken(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().broken)
    }

    pub(crate) fn assert_kept(&self, server: &str) {
        let broken = self.broken();
        assert!(broken.is_empty(), "promises broken:\n{}\nlog of the server:\n{server}", broken.join("\n"));
    }
}

/// The beginning of what may be long.
fn brief(what: &impl std::fmt::Debug) -> String {
    format!("{what:?}").chars().take(300).collect()
}

/// Everything the server has.
pub(crate) async fn all_tasks(client: &Client) -> Vec<Task> {
    let (mut tasks, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list(TaskFilter::default(), 1000, token).await.unwrap();
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            return tasks;
        }
        token = page.next_page_token;
    }
}
