package mcp

import (
	"crypto/rand"
	"errors"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// question is what a person was asked, until the answer comes: what is then done
// is what was shown, whatever the agent or the guest have done meanwhile.
type question struct {
	tool string
	what any
}

// maxAsked bounds the questions of a session whose answers may still come: the
// oldest is forgotten.
const maxAsked = 8

// answerID names the one question of a call.
const answerID = "person"

// errCannotAsk says that there is nobody to say yes.
var errCannotAsk = errors.New("this needs the user's yes, and this MCP client cannot ask (it does not declare the elicitation capability)")

// canAsk says whether the client can put a form before its user.
func canAsk(req *sdk.CallToolRequest) bool {
	caps := req.ClientCapabilities()
	if caps == nil || caps.Elicitation == nil {
		return false
	}
	e := caps.Elicitation
	return e.Form != nil || e.URL == nil
}

// ask makes the answer that has the client ask its user. A client of an older
// protocol is asked by the SDK, which then calls the tool again with the answer.
func (s *session) ask(req *sdk.CallToolRequest, tool, message string, schema map[string]any, what any) (*sdk.CallToolResult, error) {
	if !canAsk(req) {
		return nil, errCannotAsk
	}
	if schema == nil {
		schema = map[string]any{"type": "object", "properties": map[string]any{}}
	}
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == maxAsked { // a client that fails in between never answers
		delete(s.asked, s.order[0])
		s.order = s.order[1:]
	}
	s.asked[id], s.order = question{tool, what}, append(s.order, id)
	return &sdk.CallToolResult{
		InputRequests: sdk.InputRequestMap{answerID: &sdk.ElicitParams{Mode: "form", Message: message, RequestedSchema: schema}},
		RequestState:  id,
	}, nil
}

// errNo is a person's no.
var errNo = errors.New("the user said no: do not ask for the same again unless the user brings it up")

// answer returns what was asked and the form's content if this call brings the
// person's yes, and asked = false if it is a new call.
func (s *session) answer(req *sdk.CallToolRequest, tool string) (what any, form map[string]any, asked bool, err error) {
	if req.Params.RequestState == "" && req.Params.InputResponses == nil {
		return nil, nil, false, nil
	}
	s.mu.Lock()
	q, is := s.asked[req.Params.RequestState]
	delete(s.asked, req.Params.RequestState) // one answer is good once
	s.mu.Unlock()
	if !is || q.tool != tool {
		return nil, nil, true, errors.New("this answers no question of this session")
	}
	switch a, _ := req.Params.InputResponses[answerID].(*sdk.ElicitResult); {
	case a == nil:
		return nil, nil, true, errors.New("the user's answer is missing")
	case a.Action == "accept":
		return q.what, a.Content, true, nil
	case a.Action == "cancel":
		return nil, nil, true, errors.New("the user closed the question without an answer")
	}
	return nil, nil, true, errNo
}
