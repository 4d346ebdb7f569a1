// The same driver as python/driver.py, for Go.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

type request struct {
	ID          int             `json:"id"`
	Op          string          `json:"op"`
	URL         string          `json:"url"`
	Name        string          `json:"name"`
	Prefix      string          `json:"prefix"`
	Method      string          `json:"method"`
	Params      json.RawMessage `json:"params"`
	Task        string          `json:"task"`
	Key         string          `json:"key"`
	Salt        int             `json:"salt"`
	Retries     int             `json:"retries"`
	Delay       float64         `json:"delay"`
	Start       int             `json:"start"`
	Count       int             `json:"count"`
	Concurrency int             `json:"concurrency"`
}

var (
	answering sync.Mutex
	lock      sync.Mutex
	workers   = map[string]*worker{}
)

func say(value any) {
	answering.Lock()
	defer answering.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(value)
}

func add(params json.RawMessage) (any, error) {
	var numbers struct{ A, B json.Number }
	if err := json.Unmarshal(params, &numbers); err != nil {
		return nil, err
	}
	a, errA := numbers.A.Int64()
	b, errB := numbers.B.Int64()
	return a + b, errors.Join(errA, errB)
}

var handlers = map[string]handler{
	"add":     add,
	"echo":    func(params json.RawMessage) (any, error) { return params, nil },
	"nothing": func(json.RawMessage) (any, error) { return nil, nil },
	"fail":    func(json.RawMessage) (any, error) { return nil, errors.New("out of paper") },
	"slow10ms": func(params json.RawMessage) (any, error) {
		time.Sleep(10 * time.Millisecond)
		return add(params)
	},
	"odd": func(params json.RawMessage) (any, error) {
		var n int
		if err := json.Unmarshal(params, &n); err != nil {
			return nil, err
		}
		if n%10 == 0 {
			return nil, fmt.Errorf("no %d", n)
		}
		return 2*n + 1, nil
	},
}

func work(r request) (any, error) {
	prefix := r.Prefix
	if prefix == "" {
		prefix = r.Name
	}
	w := &worker{url: r.URL, group: r.Name, methods: map[string]handler{}}
	for name, handler := range handlers {
		w.methods[prefix+"."+name] = handler
	}
	if err := w.start(); err != nil {
		return nil, err
	}
	lock.Lock()
	workers[r.Name] = w
	lock.Unlock()
	return true, nil
}

func many(r request) any {
	client := newClient(r.URL)
	numbers := make(chan int)
	answers := make([]any, 0, r.Count)
	var gathering sync.Mutex
	var running sync.WaitGroup
	for range r.Concurrency {
		running.Add(1)
		go func() {
			defer running.Done()
			for n := range numbers {
				value, err := client.executeSync(r.Method, n)
				answer := map[string]any{"ok": value}
				if err != nil {
					answer = map[string]any{"error": err.Error()}
				}
				gathering.Lock()
				answers = append(answers, []any{n, answer})
				gathering.Unlock()
			}
		}()
	}
	for n := r.Start; n < r.Start+r.Count; n++ {
		numbers <- n
	}
	close(numbers)
	running.Wait()
	return answers
}

func serve(r request) (any, error) {
	client := newClient(r.URL)
	delay := time.Duration(r.Delay * float64(time.Second))
	switch r.Op {
	case "work":
		return work(r)
	case "stop":
		lock.Lock()
		defer lock.Unlock()
		workers[r.Name].stop()
		delete(workers, r.Name)
		return true, nil
	case "execute":
		return client.execute(r.Method, r.Params)
	case "get_result":
		return client.result(r.Task)
	case "execute_sync":
		return client.executeSync(r.Method, r.Params)
	case "call":
		return call(r.URL, r.Method, r.Params)
	case "retry":
		return withRetry(r.Retries, delay, func() (json.RawMessage, error) {
			return client.executeSync(r.Method, r.Params)
		})
	case "encrypted":
		return client.executeSyncEncrypted(r.Method, r.Key, r.Salt, r.Params)
	case "retry_encrypted":
		return withRetry(r.Retries, delay, func() (json.RawMessage, error) {
			return client.executeSyncEncrypted(r.Method, r.Key, r.Salt, r.Params)
		})
	case "bench":
		var times []float64
		for range r.Count {
			began := time.Now()
			if _, err := client.executeSync(r.Method, r.Params); err != nil {
				return nil, err
			}
			times = append(times, time.Since(began).Seconds()*1000)
		}
		return times, nil
	case "many":
		return many(r), nil
	}
	return nil, fmt.Errorf("no operation %q", r.Op)
}

func main() {
	say(map[string]string{"event": "up"})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		r := request{Retries: 3, Delay: 0.1}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		go func() {
			value, err := serve(r)
			if err != nil {
				say(map[string]any{"id": r.ID, "error": err.Error()})
			} else {
				say(map[string]any{"id": r.ID, "ok": value})
			}
		}()
	}
}
