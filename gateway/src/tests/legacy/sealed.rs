//! Encrypted calls.

use super::*;

fn sealed_call(secret: &str, salt: &str, params: &str) -> String {
    json!({
        "method": "m",
        "params": crypto::seal(params.as_bytes(), secret).unwrap(),
        "key": crypto::seal(secret.as_bytes(), salt).unwrap(),
        "crypto": salt,
    })
    .to_string()
}

#[tokio::test]
async fn sealed_calls_are_relayed_unopened_by_default() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let call = sealed_call("k", "12", "{\"a\":1}");
    let id = id_of(server.post("/api/encrypted/execute", &call).await, "processing");
    let message: Value = serde_json::from_str(&worker.hear().await.unwrap()).unwrap();
    let sent: Value = serde_json::from_str(&call).unwrap();
    assert_eq!(message["type"], "encrypted_task");
    for field in ["method", "params", "key", "crypto"] {
        assert_eq!(message[field], sent[field], "{field}");
    }
    worker.answer(&id, "\"sealed\"").await;
    assert_eq!(server.get(&format!("/api/result/{id}")).await, (404, "task not found\n".to_owned()));
    let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), done(&id, json!("sealed")));
    let old = r#"{"method":"m","key":"k","salt":1,"params":{}}"#;
    assert_eq!(server.post("/api/execute-encrypted", old).await.0, 404);
}

#[tokio::test]
async fn sealed_calls_are_opened_when_the_operator_asks_for_it() {
    let server = Server::start(|settings| settings.legacy_open_encrypted = true).await;
    let mut worker = Worker::join(&server, "m").await;
    let (secret, params) = ("k-钥匙", "{\"a\": 9007199254740993}");
    let old = format!(r#"{{"method":"m","key":"{secret}","salt":7,"params":{params}}}"#);
    let sealed = sealed_call(secret, "-7", params);
    for (path, call) in [("/api/encrypted/execute", &sealed), ("/api/execute-encrypted", &old)] {
        for plainly in [false, true] {
            let id = id_of(server.post(path, call).await, "processing");
            let message = worker.hear().await.unwrap();
            assert!(message.contains("\"params\":{\"a\":9007199254740993}"), "{message}");
            assert!(message.contains("\"type\":\"task\"") && message.contains(&id), "{message}");
            worker.answer(&id, "{\"sum\": 3}").await;
            if plainly {
                let expected = json!({"status": "completed", "taskId": id, "result": {"sum": 3}});
                assert_eq!(result(&server, &id).await, expected);
            } else {
                let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
                let answer: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(answer["status"], "done");
                let opened = crypto::open(answer["result"].as_str().unwrap(), secret).unwrap();
                assert_eq!(opened, b"{\"sum\":3}");
            }
        }
    }
    // What cannot be opened is relayed as ever.
    let nonsense = r#"{"method":"m","params":"UEFSQU1T","key":"S0VZ","crypto":"1"}"#;
    let id = id_of(server.post("/api/encrypted/execute", nonsense).await, "processing");
    assert!(worker.hear().await.unwrap().contains("\"type\":\"encrypted_task\""));
    worker.say(&format!(r#"{{"type":"result","taskId":"{id}","error":"boom"}}"#)).await;
    let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), failed(&id, "boom"));
}
