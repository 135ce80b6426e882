// Package opcert signs, checks and opens for the server of a WeChat Pay merchant, with a key and
// secrets that stay on a token. A *Daemon is a Verifier, an Encryptor and a Decryptor of
// wechatpay-go; its Signer is in ./shop.
package opcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Daemon is the native door of opcertd, as one merchant's server uses it.
type Daemon struct {
	Merchant string
	address  string
	client   *http.Client
}

// Refused is why the daemon did not do something.
type Refused struct{ Code, Detail string }

func (r *Refused) Error() string { return fmt.Sprintf("%s [%s]", r.Detail, r.Code) }

// New takes the address of the door and the folder that `opcert client add` wrote.
func New(address, folder, merchant string) (*Daemon, error) {
	file := func(name string) string { return filepath.Join(folder, name) }
	own, err := tls.LoadX509KeyPair(file("client.pem"), file("client-key.pem"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(file("server-ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots},
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return &Daemon{Merchant: merchant, address: address, client: client}, nil
}

type members map[string]any

func (d *Daemon) ask(ctx context.Context, path string, body members, answer any) error {
	body["merchant"] = d.Merchant
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	url := d.address + "/v1/wechatpay/" + path
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(content))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := d.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		refused := new(Refused)
		if err := json.NewDecoder(response.Body).Decode(refused); err != nil {
			return err
		}
		return refused
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// Signed is a signature and the certificate it is of.
type Signed struct{ Serial, Signature string }

var errNoMessage = errors.New("this is no message to or of the platform")

// Sign takes the string that a key would sign. The daemon signs no such thing: it gets the parts
// and builds the string itself, so a string with anything else in it has no valid signature.
func (d *Daemon) Sign(ctx context.Context, message string) (signed Signed, err error) {
	part := strings.SplitN(message, "\n", 5)
	if len(part) != 5 {
		return signed, errNoMessage
	}
	if strings.HasPrefix(part[0], "wx") || strings.HasPrefix(part[0], "ww") {
		return d.start(ctx, part)
	}
	second, err := strconv.ParseInt(part[2], 10, 64)
	if err != nil {
		return signed, errNoMessage
	}
	body := []byte(strings.TrimSuffix(part[4], "\n"))
	err = d.ask(ctx, "v3/authorization", members{
		"method": part[0], "target": part[1], "timestamp": second, "nonce": part[3],
		"body_base64": base64.StdEncoding.EncodeToString(body),
	}, &signed)
	return signed, err
}

// start signs what starts a payment: appid, timestamp, nonce, prepay id.
func (d *Daemon) start(ctx context.Context, part []string) (signed Signed, err error) {
	second, err := strconv.ParseInt(part[1], 10, 64)
	if err != nil || part[4] != "" {
		return signed, errNoMessage
	}
	client, signature := "app", "sign"
	if strings.HasPrefix(part[3], "prepay_id=") {
		client, signature = "jsapi", "paySign"
	}
	var answer struct {
		Serial     string
		Parameters map[string]string
	}
	err = d.ask(ctx, "v3/paysign", members{
		"client": client, "appid": part[0], "timestamp": second, "nonce": part[2],
		"prepay_id": strings.TrimPrefix(part[3], "prepay_id="),
	}, &answer)
	return Signed{answer.Serial, answer.Parameters[signature]}, err
}

// Verify checks that the platform signed `message`, three lines, with the key of that name.
func (d *Daemon) Verify(ctx context.Context, serial, message, signature string) error {
	part := strings.SplitN(message, "\n", 3)
	if len(part) != 3 {
		return errNoMessage
	}
	body := []byte(strings.TrimSuffix(part[2], "\n"))
	return d.ask(ctx, "v3/verify", members{
		"headers": map[string]string{
			"Wechatpay-Timestamp": part[0], "Wechatpay-Nonce": part[1],
			"Wechatpay-Serial": serial, "Wechatpay-Signature": signature,
		},
		"body_base64": base64.StdEncoding.EncodeToString(body),
	}, new(struct{}))
}

// GetSerial names the key that the platform is asked to sign its answers with.
func (d *Daemon) GetSerial(ctx context.Context) (string, error) {
	serial, _, err := d.encrypt(ctx, "")
	return serial, err
}

// SelectCertificate names the key that fields are encrypted for.
func (d *Daemon) SelectCertificate(ctx context.Context) (string, error) { return d.GetSerial(ctx) }

// Encrypt encrypts a field for the key of that name.
func (d *Daemon) Encrypt(ctx context.Context, serial, plaintext string) (string, error) {
	used, ciphertext, err := d.encrypt(ctx, plaintext)
	if err == nil && used != serial {
		err = fmt.Errorf("fields are encrypted for %s by now; make the request anew", used)
	}
	if err != nil {
		return "", err
	}
	return ciphertext, nil
}

func (d *Daemon) encrypt(ctx context.Context, plaintext string) (serial, field string, err error) {
	var answer struct {
		Serial string
		Fields []string
	}
	err = d.ask(ctx, "v3/fields/encrypt", members{"fields": []string{plaintext}}, &answer)
	if err != nil {
		return "", "", err
	}
	return answer.Serial, answer.Fields[0], nil
}

// Decrypt decrypts a field, on the token.
func (d *Daemon) Decrypt(ctx context.Context, ciphertext string) (string, error) {
	var answer struct{ Fields []string }
	err := d.ask(ctx, "v3/fields/decrypt", members{"fields": []string{ciphertext}}, &answer)
	if err != nil {
		return "", err
	}
	return answer.Fields[0], nil
}

// Notification is a callback, verified and opened.
type Notification struct {
	ID               string `json:"id"`
	EventType        string `json:"event_type"`
	Resource         string `json:"resource"`
	FirstDeliveredAt string `json:"first_delivered_at"`
}

// Open verifies a callback and opens it, in place of notify.Handler: the APIv3 secret is not here.
func (d *Daemon) Open(ctx context.Context, header http.Header, body []byte) (n Notification, err error) {
	headers := map[string]string{}
	for name := range header {
		headers[name] = header.Get(name)
	}
	err = d.ask(ctx, "v3/decrypt", members{
		"headers": headers, "body_base64": base64.StdEncoding.EncodeToString(body),
	}, &n)
	return n, err
}
