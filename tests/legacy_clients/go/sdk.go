package main

// A client and a worker that behave as the Go module github.com/go-enols/go-server does on the wire, written
// after what is recorded of it: same library, same words, same weaknesses. The module itself is not to be had
// from the module proxy.

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

type response struct {
	TaskID string          `json:"taskId"`
	Status string          `json:"status"`
	Result json.RawMessage `json:"result"`
}

// client glues its paths to the URL as it is: a slash at its end becomes two.
type client struct {
	url  string
	http *http.Client
}

func newClient(url string) *client {
	return &client{url, &http.Client{Timeout: 30 * time.Second}}
}

func (c *client) ask(request func() (*http.Response, error)) (*response, error) {
	answer, err := request()
	if err != nil {
		return nil, fmt.Errorf("HTTP request failed: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(answer.Body)
		return nil, fmt.Errorf("HTTP %d: %s", answer.StatusCode, bytes.TrimSpace(body))
	}
	var response response
	if err := json.NewDecoder(answer.Body).Decode(&response); err != nil {
		return nil, fmt.Errorf("decode failed: %w", err)
	}
	return &response, nil
}

func (c *client) post(path string, body any) (*response, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.ask(func() (*http.Response, error) {
		return c.http.Post(c.url+path, "application/json", bytes.NewReader(text))
	})
}

func (c *client) execute(method string, params any) (*response, error) {
	return c.post("/api/execute", map[string]any{"method": method, "params": params})
}

// poll asks, sleeping a second after each `processing`, until there is an outcome. An error's text keeps the
// quotes that it has in JSON.
func (c *client) poll(path string) (*response, error) {
	for {
		response, err := c.ask(func() (*http.Response, error) { return c.http.Get(c.url + path) })
		if err != nil {
			return nil, err
		}
		switch response.Status {
		case "pending", "processing":
			time.Sleep(time.Second)
		case "error":
			return nil, errors.New(string(response.Result))
		default:
			return response, nil
		}
	}
}

func (c *client) result(task string) (*response, error) {
	return c.poll("/api/result/" + task)
}

// executeSync looks at the timeout between polls only, and no poll returns before the end.
func (c *client) executeSync(method string, params any) (json.RawMessage, error) {
	task, err := c.execute(method, params)
	if err != nil {
		return nil, err
	}
	done, err := c.result(task.TaskID)
	if err != nil {
		return nil, err
	}
	return done.Result, nil
}

func (c *client) executeSyncEncrypted(method, key string, salt int, params any) (json.RawMessage, error) {
	plain, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	crypto := strconv.Itoa(salt)
	task, err := c.post("/api/encrypted/execute", map[string]string{
		"method": method, "params": seal(plain, key), "key": seal([]byte(key), crypto), "crypto": crypto,
	})
	if err != nil {
		return nil, err
	}
	done, err := c.poll("/api/encrypted/result/" + task.TaskID)
	if err != nil {
		return nil, err
	}
	var sealed string
	if err := json.Unmarshal(done.Result, &sealed); err != nil {
		return nil, err
	}
	return open(sealed, key)
}

// call is the helper, which looks at the status of the POST first.
func call(url, method string, params any) (json.RawMessage, error) {
	c := newClient(url)
	task, err := c.execute(method, params)
	if err != nil {
		return nil, err
	}
	if task.Status == "error" {
		return nil, errors.New(string(task.Result))
	}
	done, err := c.result(task.TaskID)
	if err != nil {
		return nil, err
	}
	return done.Result, nil
}

func withRetry(retries int, delay time.Duration, run func() (json.RawMessage, error)) (json.RawMessage, error) {
	var last error
	for attempt := range retries {
		value, err := run()
		if err == nil {
			return value, nil
		}
		last = err
		if attempt < retries-1 {
			time.Sleep(delay)
		}
	}
	return nil, fmt.Errorf("after %d retries: %w", retries, last)
}

func gcm(secret string) (cipher.AEAD, []byte, error) {
	hash := sha256.Sum256([]byte(secret))
	block, err := aes.NewCipher(hash[:])
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, hash[:12], err
}

func seal(text []byte, secret string) string {
	aead, nonce, err := gcm(secret)
	if err != nil {
		panic(err) // A hash always has the length of a key.
	}
	return base64.StdEncoding.EncodeToString(aead.Seal(nil, nonce, text, nil))
}

func open(sealed, secret string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, err
	}
	aead, nonce, err := gcm(secret)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nonce, raw, nil)
}

type handler func(json.RawMessage) (any, error)

type worker struct {
	url     string
	group   string
	methods map[string]handler
	conn    *websocket.Conn
	lock    sync.Mutex
	stopped bool
}

type message struct {
	Type   string          `json:"type"`
	TaskID string          `json:"taskId"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Key    string          `json:"key"`
	Crypto string          `json:"crypto"`
}

// start connects once, then serves and comes back, 5 s after each failed attempt, until it is stopped.
func (w *worker) start() error {
	if err := w.connect(); err != nil {
		return err
	}
	go w.serve()
	return nil
}

func (w *worker) stop() {
	w.lock.Lock()
	defer w.lock.Unlock()
	w.stopped = true
	w.conn.Close()
}

func (w *worker) connect() error {
	conn, _, err := websocket.DefaultDialer.Dial(w.url, nil)
	if err != nil {
		return err
	}
	type method struct {
		Name string   `json:"name"`
		Docs []string `json:"docs"` // null
	}
	var methods []method
	for name := range w.methods {
		methods = append(methods, method{Name: name})
	}
	w.lock.Lock()
	w.conn = conn
	w.lock.Unlock()
	return w.send(map[string]any{"group": w.group, "methods": methods})
}

func (w *worker) send(value any) error {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.conn.WriteJSON(value)
}

func (w *worker) serve() {
	for {
		w.lock.Lock()
		stopped, conn := w.stopped, w.conn
		w.lock.Unlock()
		if stopped {
			return
		}
		var task message
		if err := conn.ReadJSON(&task); err != nil {
			conn.Close()
			// At once, and then every 5 s.
			for w.again() {
				time.Sleep(5 * time.Second)
			}
			continue
		}
		switch task.Type {
		case "ping":
			_ = w.send(map[string]string{"type": "pong"})
		case "task":
			go w.run(task, task.Params, func(result []byte) any { return json.RawMessage(result) })
		case "encrypted_task":
			go w.runEncrypted(task)
		}
	}
}

// again is whether another attempt to connect is needed.
func (w *worker) again() bool {
	w.lock.Lock()
	stopped := w.stopped
	w.lock.Unlock()
	return !stopped && w.connect() != nil
}

func (w *worker) runEncrypted(task message) {
	key, err := open(task.Key, task.Crypto)
	if err != nil {
		w.fail(task, err)
		return
	}
	var sealed string
	if err := json.Unmarshal(task.Params, &sealed); err != nil {
		w.fail(task, err)
		return
	}
	params, err := open(sealed, string(key))
	if err != nil {
		w.fail(task, err)
		return
	}
	w.run(task, params, func(result []byte) any { return seal(result, string(key)) })
}

func (w *worker) run(task message, params json.RawMessage, wrap func([]byte) any) {
	handler, ok := w.methods[task.Method]
	if !ok {
		w.fail(task, fmt.Errorf("method not found: %s", task.Method))
		return
	}
	value, err := handler(params)
	if err != nil {
		w.fail(task, err)
		return
	}
	result, err := json.Marshal(value)
	if err != nil {
		w.conn.Close() // What cannot be written costs the connection.
		return
	}
	_ = w.send(map[string]any{"type": "result", "taskId": task.TaskID, "result": wrap(result)})
}

func (w *worker) fail(task message, err error) {
	_ = w.send(map[string]any{"type": "result", "taskId": task.TaskID, "error": err.Error()})
}
